#include "runtime/model/requantize.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <numeric>

#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "runtime/model/checkpoint/checksum.h"
#include "runtime/model/checkpoint/shard_file.h"
#include "runtime/model/checkpoint/work_log.h"

namespace tandem {
namespace {

using nlohmann::json;

constexpr int64_t kPanel = 1 << 20;           // numbers at a time
constexpr uint64_t kPiece = 4 << 20;          // bytes at a time, of what is copied
constexpr uint64_t kWholes = uint64_t{4} << 30;  // bytes that threads may hold together of matrices that are quantized whole

struct Shard {
  std::unique_ptr<ShardFile> file;
  std::mutex mutex;  // of what follows
  size_t left = 0;   // tensors
  std::map<std::string, std::string> texts;
};

// The bytes of one tensor's pieces on their way to the file, in order.
class TensorOutput {
 public:
  TensorOutput(const OutputTensor& tensor, ShardFile& file) : tensor_(tensor), file_(file), sums_(tensor.pieces.size()), next_(tensor.pieces.size()) {}

  void put(size_t piece, uint64_t offset, std::span<const std::byte> bytes) {
    if (offset != next_[piece]) fail(Code::internal, tensor_.pieces[piece].name, "is not written in order");
    file_.write(tensor_.pieces[piece], offset, bytes);
    sums_[piece].add(bytes);
    next_[piece] += bytes.size();
  }
  // A part of the quantized weight: `ranges` of each component's bytes, one after the other in `view`.
  void put_part(const QuantizedView& view, const std::vector<std::vector<ByteRange>>& ranges, bool first) {
    std::vector<std::byte> bytes;
    for (size_t i = 0; i < tensor_.pieces.size(); ++i) {
      const FilePiece& piece = tensor_.pieces[i];
      if (piece.component < 0) continue;
      const std::byte* from = view.data[static_cast<size_t>(piece.component)];
      for (const ByteRange& range : ranges[static_cast<size_t>(piece.component)]) {
        const uint64_t offset = recoded_offset(piece.recoding, range.begin);
        if (offset != 0 || first) {  // what belongs to all of the weight is there from the first part on
          recode(piece.recoding, from, range.size(), bytes);
          put(i, offset, bytes);
        }
        from += range.size();
      }
    }
  }
  // Constants and texts; what the log keeps.
  json finish(const QuantizedView& view) {
    json texts = json::object(), sums = json::array();
    for (size_t i = 0; i < tensor_.pieces.size(); ++i) {
      const FilePiece& piece = tensor_.pieces[i];
      if (piece.text) {
        texts[piece.name] = piece.text(view);
      } else if (!piece.constant.empty()) {
        put(i, 0, piece.constant);
      }
      if (!piece.text && next_[i] != piece.bytes) fail(Code::internal, piece.name, "has bytes that were not written");
      sums.push_back(sums_[i].value());
    }
    return {{"sums", sums}, {"texts", texts}};
  }

 private:
  const OutputTensor& tensor_;
  ShardFile& file_;
  std::vector<Checksum> sums_;
  std::vector<uint64_t> next_;
};

class Requantizer {
 public:
  Requantizer(const Blueprint& blueprint, const OutputPlan& plan, const RequantizeOptions& options, const LoadListener& listener)
      : b_(blueprint), plan_(plan), o_(options), listener_(listener), log_("-o", "`tandem quantize`", options.folder, options.job), shards_(plan.shards.size()), shard_of_(plan.tensors.size()) {
    for (size_t s = 0; s < shards_.size(); ++s) {
      std::vector<const FilePiece*> pieces;
      for (const size_t t : plan.shards[s]) {
        shard_of_[t] = s;
        for (const FilePiece& piece : plan.tensors[t].pieces) pieces.push_back(&piece);
      }
      shards_[s].file = std::make_unique<ShardFile>(o_.folder + "/" + shard_name(s, shards_.size()), pieces);
      shards_[s].left = plan.shards[s].size();
    }
  }

  Requantized run() {
    Team team(threads());
    try {
      team.run([this](int) { work(); });
      write_the_rest();
    } catch (const Error& error) {
      if (error.code != Code::resource_exhausted) throw;
      size_t whole = 0;
      for (const Shard& shard : shards_) whole += shard.left == 0 && shard.file->finished();
      fail(error.code, error.where, error.message + " (" + std::to_string(whole) + " of " + std::to_string(shards_.size()) + " files are whole and stay; make room for about " +
                                        std::to_string(missing_bytes() / 1000000 + 1) + " MB and give the same command again: it goes on from there)");
    }
    log_.remove();
    Requantized result{resumed_.load()};
    for (const Shard& shard : shards_) result.bytes += std::filesystem::file_size(shard.file->path());
    return result;
  }

 private:
  int threads() const {
    uint64_t most = 1;
    for (const OutputTensor& tensor : plan_.tensors) {
      if (tensor.copied == nullptr && (tensor.format->reach() == Reach::whole || tensor.transposed)) most = std::max(most, static_cast<uint64_t>(tensor.rows * tensor.cols) * 8);
    }
    return static_cast<int>(std::clamp<uint64_t>(kWholes / most, 1, static_cast<uint64_t>(std::max(1, o_.threads))));
  }

  // What the files do not take up yet.
  uint64_t missing_bytes() const {
    uint64_t there = 0;
    for (const Shard& shard : shards_) there += shard.file->taken_bytes();
    return plan_.bytes - std::min(plan_.bytes, there);
  }

  void work() {
    try {
      for (size_t t; !stop_ && (t = next_++) < plan_.tensors.size();) make(t);
    } catch (...) {
      stop_ = true;
      throw;
    }
  }

  void make(size_t t) {
    const OutputTensor& tensor = plan_.tensors[t];
    Shard& shard = shards_[shard_of_[t]];
    const json* before = log_.find(tensor.name);
    std::map<std::string, std::string> texts;
    if (before != nullptr && is_there(tensor, *shard.file, *before, texts)) {
      resumed_ += bytes_of(tensor);
      step(tensor.source_bytes);
    } else {
      {
        std::lock_guard lock(shard.mutex);
        shard.file->open();
      }
      TensorOutput out(tensor, *shard.file);
      json result = tensor.copied ? copy(tensor, out) : quantize(tensor, out);
      for (const auto& [name, text] : result["texts"].items()) texts[name] = text;
      log_.add(tensor.name, std::move(result));
    }
    std::lock_guard lock(shard.mutex);
    shard.texts.merge(texts);
    if (--shard.left == 0 && !shard.file->finished()) shard.file->finish(shard.texts);
  }

  static uint64_t bytes_of(const OutputTensor& tensor) {
    uint64_t bytes = 0;
    for (const FilePiece& piece : tensor.pieces) bytes += piece.bytes;
    return bytes;
  }

  // Whether an earlier process left this tensor as it logged it.
  bool is_there(const OutputTensor& tensor, const ShardFile& file, const json& logged, std::map<std::string, std::string>& texts) const {
    const auto sums = logged.find("sums"), said = logged.find("texts");
    if (sums == logged.end() || !sums->is_array() || sums->size() != tensor.pieces.size() || said == logged.end() || !said->is_object()) return false;
    std::vector<std::byte> bytes;
    for (size_t i = 0; i < tensor.pieces.size(); ++i) {
      const FilePiece& piece = tensor.pieces[i];
      if (piece.text) {
        const auto text = said->find(piece.name);
        if (text == said->end() || !text->is_string() || text->get_ref<const std::string&>().size() > piece.bytes) return false;
        texts[piece.name] = *text;
        continue;
      }
      Checksum sum;
      for (uint64_t at = 0; at < piece.bytes; at += bytes.size()) {
        bytes.resize(std::min(kPiece, piece.bytes - at));
        if (!file.read(piece, at, bytes)) return false;
        sum.add(bytes);
      }
      if ((*sums)[i] != sum.value()) return false;
    }
    return true;
  }

  json copy(const OutputTensor& tensor, TensorOutput& out) {
    std::vector<std::byte> bytes;
    for (uint64_t at = 0; at < tensor.copied->bytes; at += bytes.size()) {
      bytes.resize(std::min(kPiece, tensor.copied->bytes - at));
      b_.checkpoint.tensors->read(*tensor.copied, {at, at + bytes.size()}, bytes.data());
      out.put(0, at, bytes);
      step(bytes.size());
    }
    return out.finish({});
  }

  json quantize(const OutputTensor& tensor, TensorOutput& out) {
    const Format& format = *tensor.format;
    const WeightRow& row = b_.model->weights[tensor.parts[0]];
    const bool as_loaded = tensor.parts.size() == 1 && tensor.minus == 0 && !tensor.transposed;
    const RowOrder order = b_.checkpoint.dialect == Dialect::gguf ? row.gguf.order : RowOrder::as_is;
    int64_t grain = std::max<int64_t>(1, format.grain(tensor.rows, tensor.cols).rows);
    if (order != RowOrder::as_is) grain = std::lcm(grain, std::max<int64_t>(1, row.rows.unit));
    int64_t panel = std::max(grain, kPanel / std::max<int64_t>(1, tensor.cols) / grain * grain);
    if (format.reach() == Reach::whole || tensor.transposed || (order != RowOrder::as_is && !as_loaded) || row.role == Role::norm || row.role == Role::bias) panel = tensor.rows;
    std::vector<std::byte> buffer, made;
    QuantizedView view;
    for (int64_t begin = 0; begin < tensor.rows; begin += panel) {
      const Rectangle part{begin, std::min(tensor.rows, begin + panel), 0, tensor.cols};
      LoadedSlice slice;
      if (as_loaded) {
        slice = load_slice_as(format, b_, tensor.parts[0], part);
        view = slice.view;
      } else {
        view = from_floats(tensor, part, floats(tensor, part), made);
      }
      out.put_part(view, format.ranges(tensor.rows, tensor.cols, part), begin == 0);
      step(tensor.source_bytes * static_cast<uint64_t>(part.rows()) / static_cast<uint64_t>(tensor.rows));
      if (stop_) fail(Code::cancelled, tensor.name, "was given up");
      if (part.row_end == tensor.rows) return out.finish(view);
    }
    return out.finish(view);
  }

  // Rows of a fused matrix from its parts, as Hugging Face stores them.
  std::vector<float> floats(const OutputTensor& tensor, const Rectangle& part) const {
    std::vector<float> values(static_cast<size_t>(part.rows() * part.cols()));
    int64_t first = 0;
    for (const WeightId id : tensor.parts) {
      const int64_t rows = b_.model->weights[id].rows.size(), begin = std::max(part.row_begin, first), end = std::min(part.row_end, first + rows);
      if (begin < end) {
        const LoadedSlice slice = load_slice_as(dense_format(DType::f32), b_, id, {begin - first, end - first, 0, tensor.cols});
        std::memcpy(values.data() + (begin - part.row_begin) * tensor.cols, slice.view.data[0], static_cast<size_t>((end - begin) * tensor.cols) * sizeof(float));
      }
      first += rows;
    }
    for (float& value : values) value -= tensor.minus;
    if (!tensor.transposed) return values;
    std::vector<float> turned(values.size());
    for (int64_t r = 0; r < tensor.rows; ++r) {
      for (int64_t c = 0; c < tensor.cols; ++c) turned[static_cast<size_t>(c * tensor.rows + r)] = values[static_cast<size_t>(r * tensor.cols + c)];
    }
    return turned;
  }

  QuantizedView from_floats(const OutputTensor& tensor, const Rectangle& part, const std::vector<float>& values, std::vector<std::byte>& made) const {
    const std::vector<Component> components = tensor.format->components(part.rows(), part.cols());
    uint64_t total = 0;
    for (const Component& component : components) total += component.bytes;
    made.resize(total);
    QuantizedView view{tensor.format, part.rows(), part.cols(), {}};
    std::vector<std::byte*> to;
    std::byte* at = made.data();
    for (size_t i = 0; i < components.size(); ++i) {
      to.push_back(at);
      view.data[i] = at;
      at += components[i].bytes;
    }
    tensor.format->quantize(values.data(), part.rows(), part.cols(), to);
    return view;
  }

  void write_the_rest() {
    if (shards_.size() > 1) {
      nlohmann::ordered_json index, map = nlohmann::ordered_json::object();
      uint64_t total = 0;
      for (size_t s = 0; s < shards_.size(); ++s) {
        for (const size_t t : plan_.shards[s]) {
          for (const FilePiece& piece : plan_.tensors[t].pieces) {
            map.push_back({piece.name, shard_name(s, shards_.size())});
            total += piece.text ? shards_[s].texts.at(piece.name).size() : piece.bytes;
          }
        }
      }
      index["metadata"] = {{"total_size", total}};
      index["weight_map"] = std::move(map);
      write_whole_file(o_.folder + "/model.safetensors.index.json", index.dump(2) + "\n");
    }
    for (const OutputFileText& file : o_.files) write_whole_file(o_.folder + "/" + file.name, file.text);
    write_whole_file(o_.folder + "/config.json", plan_.config.dump(2) + "\n");
  }

  void step(uint64_t source_bytes) {
    const uint64_t done = done_source_ += source_bytes;
    if (listener_) listener_({std::min(done, plan_.source_bytes), plan_.source_bytes});
  }

  const Blueprint& b_;
  const OutputPlan& plan_;
  const RequantizeOptions& o_;
  const LoadListener& listener_;
  WorkLog log_;
  std::vector<Shard> shards_;
  std::vector<size_t> shard_of_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> done_source_{0}, resumed_{0};
};

}  // namespace

Requantized requantize(const Blueprint& blueprint, const OutputPlan& plan, const RequantizeOptions& options, const LoadListener& listener) {
  return Requantizer(blueprint, plan, options, listener).run();
}

}  // namespace tandem
