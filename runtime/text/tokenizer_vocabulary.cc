// Builds a Tokenizer from vocab.json and merges.txt, the form of GPT-2 and OPT: byte-level BPE with GPT-2's split.
#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/text/tokenizer_config.h"
#include "runtime/text/tokenizer_parts.h"

namespace tandem {

std::unique_ptr<Tokenizer> Tokenizer::from_vocabulary(std::string_view vocab_json, std::string_view merges_txt, std::string_view config_json,
                                                      const std::string& where) {
  const nlohmann::json pieces = nlohmann::json::parse(vocab_json.begin(), vocab_json.end(), nullptr, false);
  if (!pieces.is_object()) bad_input(where, "is not a JSON object (pieces to ids)");
  auto parts = std::make_unique<Parts>();
  for (const auto& [piece, id] : pieces.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) bad_input(where, "gives " + piece.substr(0, 40) + " no id (a whole number below 2147483648)");
    parts->vocabulary.add(piece, id.get<int32_t>());
  }
  parts->vocabulary.finish(where);

  const std::string merges_file = where.substr(0, where.rfind('/') + 1) + "merges.txt";
  std::vector<std::string_view> lines;
  for (size_t begin = 0; begin < merges_txt.size();) {
    const size_t end = std::min(merges_txt.find('\n', begin), merges_txt.size());
    std::string_view line = merges_txt.substr(begin, end - begin);
    begin = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    lines.push_back(line);
  }
  auto bpe = std::make_unique<Bpe>(parts->vocabulary, BpeOptions{}, lines.size(), merges_file);
  for (size_t i = 0; i < lines.size(); ++i) {
    const size_t space = lines[i].find(' ');
    if (space == std::string_view::npos || lines[i].find(' ', space + 1) != std::string_view::npos) {
      bad_input(merges_file, "merge " + std::to_string(i) + " is not two pieces with a space between (\"left right\")");
    }
    bpe->add_merge(lines[i].substr(0, space), lines[i].substr(space + 1));
  }
  parts->model = std::move(bpe);
  const nlohmann::json config = parse_tokenizer_config(config_json, where);
  parts->pre_tokenizer = make_byte_level(JsonField(config, where, "").flag("add_prefix_space", false), true);
  add_byte_level_decoder(parts->decoder);
  apply_tokenizer_config(*parts, config_json, where, static_cast<int64_t>(parts->vocabulary.size()) + 65536, {});
  parts->added.finish(nullptr);
  return std::make_unique<Tokenizer>(std::move(parts));
}

}  // namespace tandem
