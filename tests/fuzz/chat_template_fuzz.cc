// libFuzzer entry: a chat template, rendered over a fixed conversation with tools. The outcome is text or an Error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/error.h"
#include "runtime/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto messages = nlohmann::ordered_json::parse(
      R"([{"role":"system","content":"S"},{"role":"user","content":"a\nb é"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]}])");
  static const auto tools =
      nlohmann::ordered_json::parse(R"([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])");
  static const auto variables = nlohmann::ordered_json::parse(R"({"bos_token":"<s>","eos_token":"</s>"})");
  try {
    const tandem::ChatTemplate chat(std::string(reinterpret_cast<const char*>(data), size), "template");
    chat.render(messages, tools, true, variables, std::chrono::system_clock::time_point());
  } catch (const tandem::Error&) {
  }
  return 0;
}
