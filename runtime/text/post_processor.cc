#include "runtime/text/post_processor.h"

namespace tandem {
namespace {

constexpr int64_t highest_id = INT32_MAX;

std::vector<int32_t> special_ids(const JsonField& tokens, const std::string& name) {
  std::vector<int32_t> ids;
  for (const JsonField& id : tokens.at(name).at("ids").elements()) ids.push_back(static_cast<int32_t>(id.integer(0, highest_id)));
  return ids;
}

}  // namespace

PostProcessor make_post_processor(const JsonField& field) {
  const std::string type = field.at("type").text();
  PostProcessor out;
  if (type == "ByteLevel") return out;
  if (type == "Sequence") {
    for (const JsonField& part : field.at("processors").elements()) {
      const PostProcessor inner = make_post_processor(part);
      out.before.insert(out.before.begin(), inner.before.begin(), inner.before.end());
      out.after.insert(out.after.end(), inner.after.begin(), inner.after.end());
    }
    return out;
  }
  if (type == "TemplateProcessing") {
    bool seen = false;
    for (const JsonField& part : field.at("single").elements()) {
      if (part.has("Sequence")) {
        if (seen) part.refuse("repeats the sequence (once)");
        seen = true;
        continue;
      }
      const std::vector<int32_t> ids = special_ids(field.at("special_tokens"), part.at("SpecialToken").at("id").text());
      auto& side = seen ? out.after : out.before;
      side.insert(side.end(), ids.begin(), ids.end());
    }
    if (!seen) field.at("single").refuse("does not hold the sequence (once)");
    return out;
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    auto id = [&](const char* name) {
      const auto pair = field.at(name).elements();
      if (pair.size() != 2) field.at(name).refuse("is not a pair of token and id");
      return static_cast<int32_t>(pair[1].integer(0, highest_id));
    };
    return {{id("cls")}, {id("sep")}};
  }
  field.refuse("is of type " + type + " (TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing, Sequence)");
}

}  // namespace tandem
