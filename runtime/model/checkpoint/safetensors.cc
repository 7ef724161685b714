#include "runtime/model/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <unordered_map>

#include "kernels/base/error.h"

namespace tandem {
namespace {

using nlohmann::json;

constexpr uint64_t kHeaderLimit = 100'000'000;  // the reference reader's
constexpr size_t kMaxDimensions = 8;
constexpr int kMaxDepth = 16;  // of values that we skip
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f64, DType::f8_e4m3, DType::f8_e5m2, DType::i8,     DType::u8,
                            DType::i16, DType::u16, DType::i32,  DType::u32, DType::i64,     DType::u64,     DType::boolean};

std::optional<DType> find_dtype(std::string_view spelled) {
  for (const DType type : kTypes) {
    if (name(type) == spelled) return type;
  }
  return std::nullopt;
}

std::string type_name(DType type) {
  switch (type) {
    case DType::f32:
      return "fp32";
    case DType::f16:
      return "fp16";
    case DType::bf16:
      return "bf16";
    default:
      break;
  }
  std::string lower(name(type));
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return lower;
}

std::string known_types() {
  std::string list;
  for (const DType type : kTypes) list += (list.empty() ? "" : ", ") + std::string(name(type));
  return list;
}

// What both JSON readers below share: every event they do not expect is an error, and values nobody asked for are skipped at a bounded
// depth. Events instead of a document, because a document hides repeated keys and costs many times the text.
class Events : public json::json_sax_t {
 public:
  explicit Events(const std::string& where) : where_(where) {}
  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("true or false"); }
  bool number_integer(number_integer_t) override { return scalar("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return scalar("a fraction"); }
  bool string(string_t&) override { return scalar("text"); }
  bool binary(binary_t&) override { return scalar("binary"); }
  bool start_object(std::size_t) override { return open("an object"); }
  bool start_array(std::size_t) override { return open("a list"); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t&) override { return true; }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    bad_input(where_, "the JSON text is broken at its byte " + std::to_string(position) + " (it must be UTF-8 and complete)");
  }

 protected:
  [[noreturn]] virtual void unexpected(std::string_view what) const = 0;
  bool skipping() const { return skip_ > 0; }
  bool scalar(std::string_view what) {
    if (!skipping()) unexpected(what);
    if (skip_ == 1) skip_ = 0;
    return true;
  }
  void skip_value() { skip_ = 1; }  // the next value, whatever it is

  const std::string& where_;

 private:
  bool open(std::string_view what) {
    if (!skipping()) unexpected(what);
    if (++skip_ > kMaxDepth) bad_input(where_, "JSON values are nested deeper than " + std::to_string(kMaxDepth));
    return true;
  }
  bool close() {
    if (--skip_ == 1) skip_ = 0;
    return true;
  }
  int skip_ = 0;  // 0: not skipping; else 1 + containers open in the skipped value
};

class Header final : public Events {
 public:
  Header(const std::string& where, uint32_t file, uint64_t data_begin, uint64_t data_bytes, std::vector<TensorInfo>& out)
      : Events(where), file_(file), data_begin_(data_begin), data_bytes_(data_bytes), out_(out) {}

  bool start_object(std::size_t size) override {
    if (skipping()) return Events::start_object(size);
    if (state_ == State::start) return to(State::names);
    if (state_ == State::name) return to(State::fields);
    if (state_ == State::metadata) return to(State::texts);
    unexpected("an object");
  }
  bool key(string_t& key) override {
    if (skipping()) return true;
    if (state_ == State::names) {
      if (key == "__metadata__") {
        if (has_metadata_) bad_input(where_, "__metadata__ appears twice");
        has_metadata_ = true;
        return to(State::metadata);
      }
      tensor_ = TensorInfo{.name = key, .file = file_};
      dtype_.reset();
      has_shape_ = has_offsets_ = false;
      return to(State::name);
    }
    if (state_ == State::texts) return true;
    if (key == "dtype") {
      if (dtype_) twice(key);
      return to(State::dtype);
    }
    if (key == "shape") {
      if (has_shape_) twice(key);
      has_shape_ = true;
      return to(State::shape);
    }
    if (key == "data_offsets") {
      if (has_offsets_) twice(key);
      has_offsets_ = true;
      return to(State::offsets);
    }
    skip_value();
    return true;
  }
  bool string(string_t& text) override {
    if (skipping()) return Events::string(text);
    if (state_ == State::texts) return true;
    if (state_ != State::dtype) unexpected("text");
    dtype_ = find_dtype(text);
    if (!dtype_)
      bad_input(where_, "tensor " + in_quotes(tensor_.name) + " has dtype " + in_quotes(text) + " (known: " + known_types() + ")");
    return to(State::fields);
  }
  bool start_array(std::size_t size) override {
    if (skipping()) return Events::start_array(size);
    if (state_ == State::shape) return to(State::dimensions);
    if (state_ == State::offsets) {
      offset_count_ = 0;
      return to(State::two);
    }
    unexpected("a list");
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (skipping()) return Events::number_unsigned(number);
    if (state_ == State::dimensions) {
      if (tensor_.shape.size() == kMaxDimensions) {
        bad_input(where_, "tensor " + in_quotes(tensor_.name) + " has more than " + std::to_string(kMaxDimensions) + " dimensions");
      }
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) unexpected("a number above 2^63");
      tensor_.shape.push_back(static_cast<int64_t>(number));
      return true;
    }
    if (state_ != State::two) unexpected("a number");
    if (offset_count_ == 2) unexpected("a third number");
    offsets_[offset_count_++] = number;
    return true;
  }
  bool end_array() override {
    if (skipping()) return Events::end_array();
    if (state_ == State::two && offset_count_ != 2) unexpected("a list that is too short");
    return to(State::fields);
  }
  bool end_object() override {
    if (skipping()) return Events::end_object();
    if (state_ == State::fields) finish();
    return to(state_ == State::names ? State::end : State::names);
  }

 private:
  enum class State { start, names, name, fields, dtype, shape, dimensions, offsets, two, metadata, texts, end };
  bool to(State state) {
    state_ = state;
    return true;
  }
  [[noreturn]] void twice(std::string_view key) const {
    bad_input(where_, "tensor " + in_quotes(tensor_.name) + " has " + std::string(key) + " twice");
  }
  [[noreturn]] void unexpected(std::string_view what) const override {
    const std::string found = " is " + std::string(what);
    const std::string tensor = "tensor " + in_quotes(tensor_.name);
    switch (state_) {
      case State::metadata:
      case State::texts:
        bad_input(where_, "a value of __metadata__" + found + " (must be text)");
      case State::name:
        bad_input(where_, tensor + found + " (must be an object with dtype, shape and data_offsets)");
      case State::dtype:
        bad_input(where_, "dtype of " + tensor + found + " (must be text such as \"BF16\")");
      case State::shape:
      case State::dimensions:
        bad_input(where_, "the shape of " + tensor + found + " (must be a list of whole numbers from 0)");
      case State::offsets:
      case State::two:
        bad_input(where_, "data_offsets of " + tensor + found + " (must be two whole numbers, begin and end)");
      default:
        bad_input(where_, "the header" + found + " (must be an object of tensors)");
    }
  }
  void finish() {
    const std::string tensor = "tensor " + in_quotes(tensor_.name);
    if (!dtype_ || !has_shape_ || !has_offsets_) {
      bad_input(where_, tensor + " has no " + (!dtype_ ? "dtype" : !has_shape_ ? "shape" : "data_offsets"));
    }
    const uint64_t elements = element_count(tensor_.shape, where_, tensor_.name);
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(size(*dtype_)), &bytes)) {
      bad_input(where_, tensor + " has an impossible shape (its bytes must be fewer than 2^64)");
    }
    if (offsets_[0] > offsets_[1] || offsets_[1] > data_bytes_) {
      bad_input(where_, tensor + " is at bytes " + std::to_string(offsets_[0]) + " to " + std::to_string(offsets_[1]) +
                            " of the data, of which the file has " + std::to_string(data_bytes_) +
                            " (the file was cut, or its header is broken)");
    }
    if (offsets_[1] - offsets_[0] != bytes) {
      bad_input(where_, tensor + " has " + std::to_string(offsets_[1] - offsets_[0]) + " bytes (its dtype and shape need " +
                            std::to_string(bytes) + ")");
    }
    tensor_.type = type_name(*dtype_);
    tensor_.bytes = bytes;
    tensor_.offset = data_begin_ + offsets_[0];
    out_.push_back(std::move(tensor_));
  }

  const uint32_t file_;
  const uint64_t data_begin_, data_bytes_;
  std::vector<TensorInfo>& out_;
  State state_ = State::start;
  bool has_metadata_ = false, has_shape_ = false, has_offsets_ = false;
  TensorInfo tensor_;
  std::optional<DType> dtype_;
  uint64_t offsets_[2] = {};
  int offset_count_ = 0;
};

class Index final : public Events {
 public:
  Index(const std::string& where, std::vector<std::pair<std::string, std::string>>& out) : Events(where), out_(out) {}
  bool start_object(std::size_t size) override {
    if (skipping()) return Events::start_object(size);
    if (state_ == State::start) return to(State::keys);
    if (state_ == State::map) return to(State::names);
    unexpected("an object");
  }
  bool key(string_t& key) override {
    if (skipping()) return true;
    if (state_ == State::names) {
      name_ = std::move(key);
    } else if (key == "weight_map") {
      if (found_) bad_input(where_, "weight_map appears twice");
      found_ = true;
      state_ = State::map;
    } else {
      skip_value();
    }
    return true;
  }
  bool string(string_t& file) override {
    if (skipping()) return Events::string(file);
    if (state_ != State::names) unexpected("text");
    // The name is joined to the directory and opened: it must stay in there.
    if (file.empty() || file.size() > 255 || file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        !file.ends_with(".safetensors")) {
      bad_input(where_, "weight_map puts " + in_quotes(name_) + " into " + in_quotes(file) +
                            " (must be the plain name of a .safetensors file in the same directory)");
    }
    out_.emplace_back(std::move(name_), std::move(file));
    return true;
  }
  bool end_object() override {
    if (skipping()) return Events::end_object();
    return to(state_ == State::names ? State::keys : State::end);
  }
  bool found() const { return found_; }

 private:
  enum class State { start, keys, map, names, end };
  bool to(State state) {
    state_ = state;
    return true;
  }
  [[noreturn]] void unexpected(std::string_view what) const override {
    if (state_ == State::names) {
      bad_input(where_, "weight_map has " + std::string(what) + " for " + in_quotes(name_) + " (must be a file name)");
    }
    bad_input(where_, (state_ == State::map ? "weight_map is " : "the file is ") + std::string(what) + " (must be an object)");
  }
  std::vector<std::pair<std::string, std::string>>& out_;
  State state_ = State::start;
  bool found_ = false;
  std::string name_;
};

void parse(std::string_view text, Events& events, const std::string& where) {
  if (text.find('\0') != std::string_view::npos) bad_input(where, "the JSON text has a NUL byte (the parser would stop there)");
  json::sax_parse(text.begin(), text.end(), &events);
}

std::unique_ptr<FileTensors> open_shards(const std::string& directory, const std::string& index_path) {
  const auto weight_map = parse_safetensors_index(read_text(index_path), index_path);
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map) names.insert(file);
  std::vector<std::unique_ptr<Storage>> files;
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string, uint32_t> file_index;
  for (const std::string& file : names) {
    const std::string path = directory + "/" + file;
    try {
      files.push_back(open_file(path));
    } catch (const Error& error) {
      if (error.code != Code::not_found) throw;
      fail(Code::not_found, path, "is named in " + index_path + " but is not there (the download is incomplete)");
    }
    const auto number = static_cast<uint32_t>(files.size() - 1);
    file_index.emplace(file, number);
    auto more = read_safetensors_header(*files.back(), number);
    std::move(more.begin(), more.end(), std::back_inserter(tensors));
  }
  auto source = std::make_unique<FileTensors>(std::move(files), std::move(tensors));
  for (const auto& [tensor, file] : weight_map) {
    const TensorInfo* found = source->find(tensor);
    if (!found || found->file != file_index[file]) {
      bad_input(index_path, "weight_map puts " + in_quotes(tensor) + " into " + file + ", which does not hold it (the files are of different checkpoints, or one is broken)");
    }
  }
  return source;
}

}  // namespace

std::vector<TensorInfo> read_safetensors_header(const Storage& file, uint32_t index) {
  const std::string& where = file.name();
  unsigned char length[8];
  if (file.size() < sizeof length) bad_input(where, "has " + std::to_string(file.size()) + " bytes (a safetensors file has at least 8)");
  file.read(0, sizeof length, length);
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
  if (header_bytes > kHeaderLimit) {
    bad_input(where, "declares a header of " + std::to_string(header_bytes) + " bytes (at most 100000000: is this a safetensors file?)");
  }
  if (header_bytes > file.size() - sizeof length) {
    bad_input(where, "declares a header of " + std::to_string(header_bytes) + " bytes, but the file has only " +
                         std::to_string(file.size()) + " (it was cut)");
  }
  std::string text(header_bytes, '\0');
  file.read(sizeof length, text.size(), text.data());
  if (text.empty() || text.front() != '{') bad_input(where, "has a header that is no JSON object");

  const uint64_t data_begin = sizeof length + header_bytes, data_bytes = file.size() - data_begin;
  std::vector<TensorInfo> tensors;
  Header events(where, index, data_begin, data_bytes, tensors);
  parse(text, events, where);

  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.offset + a.bytes) < std::pair(b.offset, b.offset + b.bytes);
  });
  uint64_t end = data_begin;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != end) {
      bad_input(where, "tensor " + in_quotes(tensor.name) + " begins at byte " + std::to_string(tensor.offset - data_begin) +
                           " of the data (must be " + std::to_string(end - data_begin) + ": tensors may neither overlap nor leave holes)");
    }
    end += tensor.bytes;
  }
  if (end != file.size()) {
    bad_input(where, "has " + std::to_string(file.size() - end) + " bytes after its last tensor (must have none)");
  }
  return tensors;
}

std::vector<std::pair<std::string, std::string>> parse_safetensors_index(std::string_view text, const std::string& where) {
  std::vector<std::pair<std::string, std::string>> weight_map;
  Index events(where, weight_map);
  parse(text, events, where);
  if (!events.found()) bad_input(where, "has no weight_map (must be an object: tensor name -> file name)");
  if (weight_map.empty()) bad_input(where, "has an empty weight_map (must name every tensor's file)");
  std::set<std::string_view> names;
  for (const auto& [tensor, file] : weight_map) {
    if (!names.insert(tensor).second) bad_input(where, "weight_map has " + in_quotes(tensor) + " twice");
  }
  return weight_map;
}

std::unique_ptr<FileTensors> open_safetensors_file(const std::string& path) {
  std::vector<std::unique_ptr<Storage>> files;
  files.push_back(open_file(path));
  auto tensors = read_safetensors_header(*files.front());
  return std::make_unique<FileTensors>(std::move(files), std::move(tensors));
}

std::unique_ptr<FileTensors> open_safetensors(const std::string& directory) {
  const std::string whole = directory + "/model.safetensors", index = whole + ".index.json";
  std::error_code error;
  // A link whose target is gone (a download cache that was cut short) is there, and opening it says what is missing.
  const auto there = [&](const std::string& path) { return std::filesystem::exists(std::filesystem::symlink_status(path, error)); };
  if (there(whole)) return open_safetensors_file(whole);
  if (there(index)) return open_shards(directory, index);

  std::vector<std::string> candidates, pickled;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string file = entry.path().filename().string(), extension = entry.path().extension().string();
    if (extension == ".safetensors" && !file.starts_with("adapter_")) candidates.push_back(file);
    if ((extension == ".bin" || extension == ".pt" || extension == ".pth") && !file.starts_with("training_args")) pickled.push_back(file);
  }
  if (error) bad_input(directory, "cannot be listed: " + error.message());
  if (candidates.size() == 1) return open_safetensors_file(directory + "/" + candidates.front());
  if (candidates.size() > 1) {
    fail(Code::not_found, index,
         "no such file, and the directory has " + std::to_string(candidates.size()) +
             " .safetensors files (the index says which tensor is in which)");
  }
  if (!pickled.empty()) {
    const std::string file = *std::min_element(pickled.begin(), pickled.end());
    bad_input(directory + "/" + file, "is a pickled checkpoint, which can run code and is not read (convert it to .safetensors)");
  }
  return nullptr;
}

}  // namespace tandem
