#include "runtime/model/models/rope.h"

#include <algorithm>
#include <cmath>

namespace tandem {
namespace {

constexpr double kPi = 3.14159265358979323846;

using Frequencies = std::vector<float>;
struct Context {
  const Config& rope;     // rope_scaling / rope_parameters as one object
  const Config& config;
  double base;
  int64_t rotary;
};

// transformers computes base ** (i / d) and the reciprocal in float32.
Frequencies plain(const Context& c) {
  Frequencies frequencies;
  for (int64_t i = 0; i < c.rotary; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(c.rotary);
    frequencies.push_back(1.0f / static_cast<float>(std::pow(c.base, static_cast<double>(exponent))));
  }
  return frequencies;
}

Rope unscaled(const Context& c) { return {c.rotary, plain(c), 1.0f}; }

Rope linear(const Context& c) {
  Rope rope = unscaled(c);
  const float factor = static_cast<float>(c.rope.number("factor", 1e-6, 1e6));
  for (float& frequency : rope.inverse_frequency) frequency /= factor;
  return rope;
}

Rope llama3(const Context& c) {
  Rope rope = unscaled(c);
  const double factor = c.rope.number("factor", 1e-6, 1e6), low = c.rope.number("low_freq_factor", 1e-6, 1e6),
               high = c.rope.number("high_freq_factor", 1e-6, 1e6);
  const double original = static_cast<double>(c.rope.integer("original_max_position_embeddings", 1, 1 << 30));
  if (high <= low) c.rope.bad("high_freq_factor", "is not larger than low_freq_factor");
  for (float& frequency : rope.inverse_frequency) {
    const double wavelength = 2 * kPi / static_cast<double>(frequency);
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      frequency = frequency / static_cast<float>(factor);
    } else {
      const float smooth = static_cast<float>((original / wavelength - low) / (high - low));
      frequency = (1 - smooth) * frequency / static_cast<float>(factor) + smooth * frequency;
    }
  }
  return rope;
}

Rope yarn(const Context& c) {
  Rope rope = unscaled(c);
  const double factor = c.rope.number("factor", 1e-6, 1e6);
  const double fast = c.rope.number("beta_fast", 1e-6, 1e6, 32), slow = c.rope.number("beta_slow", 1e-6, 1e6, 1);
  const double original = static_cast<double>(
      c.rope.integer("original_max_position_embeddings", 1, 1 << 30, c.config.integer("max_position_embeddings", 1, 1 << 30, 2048)));
  const auto scale_of = [](double s, double m) { return s <= 1 ? 1.0 : 0.1 * m * std::log(s) + 1.0; };
  const double mscale = c.rope.number("mscale", 0, 1e3, 0), all = c.rope.number("mscale_all_dim", 0, 1e3, 0);
  const double attention = mscale > 0 && all > 0 ? scale_of(factor, mscale) / scale_of(factor, all) : scale_of(factor, 1);
  rope.scale = static_cast<float>(c.rope.number("attention_factor", 1e-6, 1e6, attention));
  const double rotary = static_cast<double>(c.rotary);
  const auto dimension = [&](double rotations) { return rotary * std::log(original / (rotations * 2 * kPi)) / (2 * std::log(c.base)); };
  double first = dimension(fast), last = dimension(slow);
  if (c.rope.boolean("truncate", true)) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, rotary - 1);
  if (first == last) last += 0.001;
  for (size_t i = 0; i < rope.inverse_frequency.size(); ++i) {
    const float ramp = static_cast<float>(std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0));
    const float extrapolated = rope.inverse_frequency[i], interpolated = extrapolated / static_cast<float>(factor);
    rope.inverse_frequency[i] = interpolated * ramp + extrapolated * (1 - ramp);
  }
  return rope;
}

std::vector<double> factors_of(const Context& c, const char* key) {
  const auto count = static_cast<size_t>(c.rotary / 2);
  const std::vector<double> factors = c.rope.numbers(key, 1e-9, 1e9, count);
  if (factors.size() != count) c.rope.bad(key, "has " + std::to_string(factors.size()) + " values (must be " + std::to_string(count) + ")");
  return factors;
}

Rope gguf_factors(const Context& c) {
  Rope rope = unscaled(c);
  const std::vector<double> factors = factors_of(c, "factors");
  for (size_t i = 0; i < factors.size(); ++i) rope.inverse_frequency[i] /= static_cast<float>(factors[i]);
  return rope;
}

int64_t original_of(const Config& rope) { return rope.integer("original_max_position_embeddings", 2, 1 << 30); }

Rope longrope(const Context& c, const char* key) {
  const std::vector<double> factors = factors_of(c, key);
  Rope rope{c.rotary, {}, 1.0f};
  for (size_t i = 0; i < factors.size(); ++i) {  // multiplied before the reciprocal, as transformers does
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.rotary);
    const float power = static_cast<float>(std::pow(c.base, static_cast<double>(exponent)));
    rope.inverse_frequency.push_back(1.0f / (static_cast<float>(factors[i]) * power));
  }
  const auto original = static_cast<double>(original_of(c.rope));
  const double factor = c.rope.number("factor", 1e-6, 1e6, static_cast<double>(c.config.integer("max_position_embeddings", 1, 1 << 30)) / original);
  rope.scale = static_cast<float>(c.rope.number("attention_factor", 1e-6, 1e6, factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(original))));
  return rope;
}
Rope short_rope(const Context& c) { return longrope(c, "short_factor"); }

struct Kind { std::string_view name; Rope (*make)(const Context&); };
constexpr Kind kKinds[] = {{"default", unscaled}, {"linear", linear}, {"llama3", llama3}, {"yarn", yarn}, {"dynamic", unscaled}, {"longrope", short_rope}, {"su", short_rope}, {"gguf_longrope", short_rope}, {"gguf_factors", gguf_factors}};

std::string type_of(const Config& rope) { return rope.text("rope_type", rope.text("type", "default")); }

}  // namespace

Ropes make_ropes(const Config& config, int64_t head_dim) {
  const Config rope = config.rope();
  const double base = rope.number("rope_theta", 1, 1e12, 10000.0);
  const double share = rope.number("partial_rotary_factor", 1e-3, 1, 1);
  const int64_t rotary = static_cast<int64_t>(static_cast<double>(head_dim) * share) / 2 * 2;
  const std::string type = type_of(rope);
  for (const Kind& kind : kKinds) {
    if (kind.name != type) continue;
    const Context context{rope, config, base, rotary};
    Ropes ropes{kind.make(context), {}, 0};
    if (kind.make == short_rope) ropes.extended = longrope(context, "long_factor"), ropes.original = original_of(rope);
    return ropes;
  }
  rope.bad("rope_type", "is " + type + " (must be default, linear, llama3, yarn, longrope or dynamic)");
}

bool rope_is_bounded(const Config& config) { return type_of(config.rope()) == "dynamic"; }

int32_t rope_limit(const Config& config, int32_t context) {
  const Config rope = config.rope();
  if (type_of(rope) != "dynamic") return context;
  return static_cast<int32_t>(rope.integer("original_max_position_embeddings", 1, 1 << 30, config.integer("max_position_embeddings", 1, 1 << 30, context)));
}

}  // namespace tandem
