// A safetensors file that is written in any order and appears under its name only when it is whole; until then it is NAME.partial, which a
// later process may go on with. Where every tensor goes is known from the start: the largest elements first and names in order, as
// Hugging Face's writer has them, then texts, whose lengths are known last; the header is padded with blanks. write() may be called
// from many threads.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "runtime/model/checkpoint/quantized_writer.h"

namespace tandem {

class ShardFile {
 public:
  // Makes no file yet. Texts are those pieces that have one.
  ShardFile(std::string path, const std::vector<const FilePiece*>& pieces);
  ~ShardFile();
  ShardFile(const ShardFile&) = delete;
  const std::string& path() const { return path_; }
  uint64_t data_bytes() const { return data_bytes_; }  // of pieces that are no texts
  uint64_t bytes() const { return header_bytes_ + data_bytes_; }

  void open();  // NAME.partial, made where it is not there; it takes the place of NAME. Errors of all: Code::resource_exhausted, the disk is full; unavailable
  void write(const FilePiece& piece, uint64_t offset, std::span<const std::byte> bytes);
  void finish(const std::map<std::string, std::string>& texts);  // by the piece's name; then the file has its own name

  // What NAME, or NAME.partial, holds of a piece; false where it holds less.
  bool read(const FilePiece& piece, uint64_t offset, std::span<std::byte> out) const;
  uint64_t taken_bytes() const;  // of the disk, by NAME or NAME.partial
  bool finished() const;  // NAME is there, and a whole file. Errors: it is another file

 private:
  struct Place { const FilePiece* piece; uint64_t offset; };  // from the end of the header
  [[noreturn]] void failed(int error) const;
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  std::string path_;
  std::vector<Place> places_;  // in file order, texts not among them
  std::vector<const FilePiece*> texts_;
  std::map<const FilePiece*, uint64_t> offset_of_;
  uint64_t header_bytes_ = 0, data_bytes_ = 0;
  int descriptor_ = -1;
};

// A small file, whole or not there. Errors: as above.
void write_whole_file(const std::string& path, std::string_view text);

}  // namespace tandem
