// Any bytes as config.json: values in the ranges that were asked for, or an Error of one line.
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/model/checkpoint/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  try {
    const Config config(parse_json({reinterpret_cast<const char*>(data), size}, "config.json"), "config.json");
    for (const char* key : {"num_hidden_layers", "hidden_size", "vocab_size", "eos_token_id"}) {
      try {
        const int64_t value = config.integer(key, 1, 1 << 20, 1);
        if (value < 1 || value > 1 << 20) std::abort();
      } catch (const Error& error) {
        if (std::string_view(error.what()).find_first_of("\n\r") != std::string_view::npos) std::abort();
        (void)config.integers(key, 0, 1 << 20, 16);
      }
    }
    const Config rope = config.rope();
    (void)rope.text("rope_type");
    const double theta = rope.number("rope_theta", 1, 1e12, 10000);
    if (!(theta >= 1 && theta <= 1e12)) std::abort();
    (void)rope.numbers("long_factor", 0, 1e6, 1024);
    (void)config.dtype();
    (void)config.boolean("tie_word_embeddings", false);
    (void)config.texts("architectures", 4);
    (void)config.text("model_type", "");
  } catch (const Error&) {
  }
  return 0;
}
