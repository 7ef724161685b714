// libFuzzer entry: a tokenizer.json, a zero byte, and text to take through it. Whatever the bytes are, the outcome is a tokenizer or an
// Error, and streaming agrees with decoding.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"
#include "runtime/text/detokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view json(reinterpret_cast<const char*>(data), size);
  std::string_view text = "Hello 123 \xC3\xA9 <s>";
  if (const size_t zero = json.find('\0'); zero != std::string_view::npos) {
    text = json.substr(zero + 1);
    json = json.substr(0, zero);
  }
  try {
    const auto tokenizer = tandem::Tokenizer::from_json(json, {}, "tokenizer.json");
    const auto ids = tokenizer->encode(text, true);
    tandem::Detokenizer detokenizer(*tokenizer);
    std::string joined;
    for (const int32_t id : ids) joined += detokenizer.feed(id);
    joined += detokenizer.flush();
    if (joined != tokenizer->decode(ids, true)) std::abort();
  } catch (const tandem::Error&) {
  }
  return 0;
}
