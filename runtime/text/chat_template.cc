#include "runtime/text/chat_template.h"

#include "kernels/base/error.h"
#include "runtime/text/jinja_evaluator.h"
#include "runtime/text/jinja_parser.h"
#include "runtime/text/utf8.h"

namespace tandem {

struct ChatTemplate::Parsed {
  std::string source, where;
  jinja::Block block;
};

namespace {

using Json = nlohmann::ordered_json;

// transformers hands messages on without their nulls, and the reasoning under all of the names that templates read.
jinja::Value message_value(const Json& message) {
  const jinja::Value plain = jinja::Value::from_json(message, 1);
  const jinja::Dict& given = plain.as_dict();
  const jinja::Value* reasoning = nullptr;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const jinja::Value* found = given.find(std::string_view(name));
    if (!reasoning && found && !found->is_none()) reasoning = found;
  }
  jinja::Dict out;
  if (reasoning) out.set(jinja::Value::string("thinking"), *reasoning);
  for (const auto& [key, value] : given.items()) {
    if (!value.is_none()) out.set(key, value);
  }
  if (reasoning) out.set(jinja::Value::string("reasoning_content"), *reasoning);
  return jinja::Value::dict(std::move(out));
}

Json parse_config(std::string_view text, const std::string& where) {
  Json config;
  try {
    config = Json::parse(text.begin(), text.end());
  } catch (const Json::exception&) {
    bad_input(where, "is not JSON (one whole JSON object)");
  }
  if (!config.is_object()) bad_input(where, "the top level is not an object (one JSON object)");
  return config;
}

}  // namespace

ChatTemplate::ChatTemplate(std::string source, const std::string& where) : parsed_(std::make_unique<Parsed>()) {
  if (source.size() > (size_t{4} << 20)) bad_input(where, "the chat template has more than 4 MiB (less)");
  if (!is_valid_utf8(source)) bad_input(where, "the chat template is not UTF-8 (UTF-8 text)");
  parsed_->source = std::move(source);
  parsed_->where = where;
  try {
    parsed_->block = jinja::parse_template(parsed_->source);
  } catch (const jinja::SyntaxError& error) {
    bad_input(where, "the chat template, line " + std::to_string(error.line) + ": " + error.message + " (must be a Jinja template)");
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

const std::string& ChatTemplate::source() const { return parsed_->source; }

std::string ChatTemplate::render(const Json& messages, const Json& tools, bool add_generation_prompt, const Json& variables,
                                 std::chrono::system_clock::time_point now) const {
  jinja::Evaluator evaluator({}, now);
  try {
    jinja::Scope scope;
    scope.names["documents"] = jinja::Value::none();
    if (variables.is_object()) {
      for (const auto& [name, value] : variables.items()) scope.names[name] = jinja::Value::from_json(value);
    }
    jinja::List list;
    if (!messages.is_array() || messages.empty()) bad_input("messages", "is not a list of messages (at least one {role, content})");
    for (const Json& message : messages) {
      if (!message.is_object()) bad_input("messages", "holds something other than a message (an object {role, content})");
      list.push_back(message_value(message));
    }
    scope.names["messages"] = jinja::Value::list(std::move(list));
    scope.names["tools"] = jinja::Value::from_json(tools);
    scope.names["add_generation_prompt"] = jinja::Value::boolean(add_generation_prompt);
    return evaluator.render(parsed_->block, scope);
  } catch (const jinja::TemplateError& error) {
    if (error.raised) bad_input("messages", "the chat template refuses them: " + error.message + " (messages as this model takes them)");
    bad_input(parsed_->where, "the chat template, line " + std::to_string(evaluator.line()) + ": " + error.message + " (must be a Jinja template, with messages that it takes)");
  }
}

std::string pick_chat_template(std::string_view tokenizer_config_json, std::string_view chat_template_jinja, const std::string& where,
                               bool with_tools) {
  if (!chat_template_jinja.empty()) return std::string(chat_template_jinja);
  if (tokenizer_config_json.empty()) return {};
  const Json config = parse_config(tokenizer_config_json, where);
  const auto held = config.find("chat_template");
  if (held == config.end() || held->is_null()) return {};
  if (held->is_string()) return held->get<std::string>();
  if (!held->is_array()) bad_input(where, "chat_template is neither text nor a list (a string, or a list of {name, template})");
  std::string names, plain;
  bool found = false;
  for (const Json& entry : *held) {
    const auto name = entry.is_object() ? entry.find("name") : entry.end();
    const auto text = entry.is_object() ? entry.find("template") : entry.end();
    if (!entry.is_object() || name == entry.end() || text == entry.end() || !name->is_string() || !text->is_string()) {
      bad_input(where, "chat_template holds something other than {name, template} (two strings)");
    }
    if (with_tools && *name == "tool_use") return text->get<std::string>();
    if (*name == "default") plain = text->get<std::string>(), found = true;
    names += (names.empty() ? "" : ", ") + name->get<std::string>();
  }
  if (!found) bad_input(where, "chat_template has no template of the name default (it has " + (names.empty() ? "none" : names) + ")");
  return plain;
}

Json chat_template_variables(std::string_view tokenizer_config_json, const std::string& where) {
  Json out = Json::object();
  if (tokenizer_config_json.empty()) return out;
  const Json config = parse_config(tokenizer_config_json, where);
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const auto held = config.find(name);
    if (held == config.end() || held->is_null()) continue;
    const Json* text = &*held;
    if (held->is_object() && held->contains("content")) text = &held->at("content");
    if (!text->is_string()) bad_input(where, std::string(name) + " is not a token (a string, or an object with content)");
    out[name] = *text;
  }
  return out;
}

}  // namespace tandem
