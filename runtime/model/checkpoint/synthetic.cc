#include "runtime/model/checkpoint/synthetic.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/storage.h"

namespace tandem {
namespace {

// ---- random numbers

// SplitMix64 (Steele, Lea, Flood 2014): a counter goes in, so that any word can be had without those before it.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint64_t key_of(uint64_t seed, std::string_view text) {
  uint64_t key = mix(seed);
  for (const unsigned char c : text) key = mix(key ^ c);
  return key;
}

// About normal: the sum of four 16-bit numbers, with deviation 1. The same on every machine.
float normal(uint64_t word) {
  constexpr float kDeviation = 37837.227f;  // of the sum: 65536 * sqrt(4 / 12)
  int32_t sum = -2 * 65535;
  for (int i = 0; i < 4; ++i) sum += static_cast<int32_t>(word >> (16 * i) & 0xffff);
  return static_cast<float>(sum) / kDeviation;
}

// ---- a pool: one matrix in a format, of which the tensors' bytes are pieces

constexpr int64_t kPoolRows = 512, kPoolCols = 2048;  // a multiple of every format's block
constexpr float kDeviation = 0.02f;
constexpr uint64_t kPiece = 8192;  // bytes, about: long enough to copy fast, short enough that few pieces of two tensors agree

// Formats that can be read but not made: random codes, and scales such that the values have the deviation above. A block's 16-bit
// floats stand at these bytes; where there is a minimum, it makes up for codes that are never negative.
struct BlockScales {
  std::string_view format;
  size_t scale_at = 0;
  float scale = 0;
  size_t minimum_at = 0;
  float minimum = 0;  // 0: there is none
};
constexpr BlockScales kBlockScales[] = {
    {"q5_0", 0, 2.17e-3f},           {"q5_1", 0, 2.17e-3f, 2, -3.36e-2f}, {"q2_k", 80, 1.44e-3f, 82, 2.16e-3f},
    {"q3_k", 108, 4.6e-4f},          {"q4_k", 0, 7.75e-5f, 2, 5.81e-4f},  {"q5_k", 0, 3.8e-5f, 2, 5.89e-4f},
    {"q6_k", 208, 1.46e-5f},         {"iq4_nl", 0, 2.9e-4f},              {"iq4_xs", 0, 1.57e-5f},
};

struct Part {                      // a component
  std::vector<std::byte> bytes;
  uint64_t unit = 1, piece = 0;    // pieces begin at multiples of the first; bytes of one
  uint64_t places = 1;             // where one may begin
};

class Pool {
 public:
  Pool(const Format& format, bool around_one, uint64_t seed) : format_(format), around_one_(around_one), seed_(key_of(seed, format.name())) {}

  // Made on first use: a plan needs none.
  const Part& part(size_t component) const {
    std::call_once(made_, [this] { make(); });
    return parts_[component];
  }

 private:
  void make() const {
    const std::vector<Component> components = format_.components(kPoolRows, kPoolCols);
    // What has the same size whatever the matrix, code maps and offsets, is no list: it is taken whole.
    const std::vector<Component> taller = format_.components(2 * kPoolRows, kPoolCols);
    parts_.clear();  // of an attempt that failed
    std::vector<std::byte*> out;
    for (size_t i = 0; i < components.size(); ++i) {
      Part& part = parts_.emplace_back();
      part.bytes.resize(components[i].bytes);
      part.unit = i == 0 ? format_.components(1, format_.block())[0].bytes : size(components[i].dtype);
      if (components[i].bytes != taller[i].bytes) {
        part.piece = std::max(part.unit, std::min(kPiece, components[i].bytes / 8) / part.unit * part.unit);
        part.places = (components[i].bytes - part.piece) / part.unit + 1;
      }
    }
    for (Part& part : parts_) out.push_back(part.bytes.data());  // the list no longer moves
    for (const BlockScales& scales : kBlockScales) {
      if (scales.format == format_.name()) return fill_blocks(scales, parts_[0]);
    }
    std::vector<float> values(kPoolRows * kPoolCols);
    for (size_t i = 0; i < values.size(); ++i) values[i] = (around_one_ ? 1.0f : 0.0f) + kDeviation * normal(mix(seed_ + i));
    try {
      format_.quantize(values.data(), kPoolRows, kPoolCols, out);
    } catch (const Error& error) {
      fail(Code::internal, "synthetic weights", "cannot be made in format " + std::string(format_.name()) + ": " + error.message);
    }
  }

  void fill_blocks(const BlockScales& scales, Part& part) const {
    for (size_t i = 0; i < part.bytes.size(); ++i) part.bytes[i] = static_cast<std::byte>(mix(seed_ + i));
    const auto put = [&part](size_t at, float value) {
      const uint16_t bits = float_to_f16(value);
      std::memcpy(part.bytes.data() + at, &bits, sizeof bits);
    };
    for (size_t block = 0; block < part.bytes.size(); block += part.unit) {
      const float factor = 0.75f + 0.5f * static_cast<float>(mix(~seed_ ^ block) >> 40) / static_cast<float>(1 << 24);
      put(block + scales.scale_at, scales.scale * factor);
      if (scales.minimum != 0) put(block + scales.minimum_at, scales.minimum * factor);
    }
  }

  const Format& format_;
  const bool around_one_;
  const uint64_t seed_;
  mutable std::once_flag made_;
  mutable std::vector<Part> parts_;
};

// ---- the source

std::string type_of(const Component& component) {
  std::string type(name(component.dtype));
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return type;
}

class Synthetic final : public TensorSource {
 public:
  Synthetic(uint64_t seed, const std::vector<SyntheticTensor>& tensors) {
    uint64_t offset = 0;
    for (const SyntheticTensor& tensor : tensors) {
      auto& pool = pools_[{tensor.format, tensor.around_one}];
      if (!pool) pool = std::make_unique<Pool>(*tensor.format, tensor.around_one, seed);
      const std::vector<Component> components = tensor.format->components(tensor.rows, tensor.cols);
      for (size_t i = 0; i < components.size(); ++i) {
        TensorInfo info{.name = tensor.name + components[i].suffix, .bytes = components[i].bytes, .offset = offset};
        if (i > 0) {
          info.type = type_of(components[i]);
          info.shape = {static_cast<int64_t>(components[i].bytes / size(components[i].dtype))};
        } else {
          info.type = tensor.format->name();
          info.shape = tensor.vector ? std::vector<int64_t>{tensor.rows * tensor.cols} : std::vector<int64_t>{tensor.rows, tensor.cols};
        }
        offset += info.bytes;
        index_.emplace(info.name, tensors_.size());
        places_.push_back({pool.get(), i, key_of(seed, info.name)});
        tensors_.push_back(std::move(info));
      }
    }
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override {
    const auto found = index_.find(std::string(name));
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }
  std::string file_name(const TensorInfo&) const override { return "synthetic weights"; }

  void read(const TensorInfo& tensor, ByteRange range, void* destination) const override {
    const auto found = index_.find(tensor.name);
    if (found == index_.end() || range.begin > range.end || range.end > tensors_[found->second].bytes) {
      fail(Code::internal, "synthetic weights", "have no bytes " + std::to_string(range.begin) + " to " + std::to_string(range.end) + " of " + in_quotes(tensor.name));
    }
    const Place& place = places_[found->second];
    const Part& part = place.pool->part(place.component);
    auto* out = static_cast<std::byte*>(destination);
    if (part.piece == 0) {
      std::memcpy(out, part.bytes.data() + range.begin, range.size());
      return;
    }
    for (uint64_t at = range.begin; at < range.end;) {
      const uint64_t piece = at / part.piece, within = at % part.piece;
      const uint64_t count = std::min(part.piece - within, range.end - at);
      std::memcpy(out, part.bytes.data() + mix(place.key + piece) % part.places * part.unit + within, count);
      out += count;
      at += count;
    }
  }

 private:
  struct Place { const Pool* pool; size_t component; uint64_t key; };
  std::map<std::pair<const Format*, bool>, std::unique_ptr<Pool>> pools_;
  std::vector<TensorInfo> tensors_;
  std::vector<Place> places_;  // of each tensor
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace

std::unique_ptr<TensorSource> make_synthetic_source(uint64_t seed, const std::vector<SyntheticTensor>& tensors) {
  return std::make_unique<Synthetic>(seed, tensors);
}

}  // namespace tandem
