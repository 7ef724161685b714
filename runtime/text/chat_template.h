// A model's chat template: the subset of Jinja2 that such templates use, with Python's meaning of values, set up as transformers sets
// it up (trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception, strftime_now). Parsed once; immutable and thread-safe
// afterwards. Steps, depth and size of the output are bounded: a hostile template ends in an Error.
#pragma once
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tandem {

class ChatTemplate {
 public:
  ChatTemplate(std::string source, const std::string& where);  // Error names `where` and the line
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // messages: a list of {role, content, ...}; tools: a list, or null; variables: bos_token, eos_token and whatever else the template
  // may ask for. An Error (its `where` is "messages") also when the template itself refuses them by raise_exception. `now` is what
  // strftime_now shows, in local time.
  std::string render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools, bool add_generation_prompt,
                     const nlohmann::ordered_json& variables,
                     std::chrono::system_clock::time_point now = std::chrono::system_clock::now()) const;

  const std::string& source() const;

 private:
  struct Parsed;
  std::unique_ptr<Parsed> parsed_;
};

// The template of a Hugging Face directory: chat_template.jinja when its text is not empty, else tokenizer_config.json's chat_template: a
// string, or a list of {name, template}, of which "default" is meant (with tools "tool_use", if it is there). "" when there is none.
std::string pick_chat_template(std::string_view tokenizer_config_json, std::string_view chat_template_jinja, const std::string& where,
                               bool with_tools = false);

// bos_token, eos_token and the other named tokens of tokenizer_config.json as text, for ChatTemplate::render.
nlohmann::ordered_json chat_template_variables(std::string_view tokenizer_config_json, const std::string& where);

}  // namespace tandem
