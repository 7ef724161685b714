#include "runtime/text/normalizer.h"

#include <unicode/normalizer2.h>
#include <unicode/stringoptions.h>
#include <unicode/uniset.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/text/byte_level.h"
#include "runtime/text/char_class.h"
#include "runtime/text/precompiled.h"
#include "runtime/text/regex.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(std::string_view form) {
    UErrorCode status = U_ZERO_ERROR;
    if (form == "NFC") form_ = icu::Normalizer2::getNFCInstance(status);
    if (form == "NFD") form_ = icu::Normalizer2::getNFDInstance(status);
    if (form == "NFKC") form_ = icu::Normalizer2::getNFKCInstance(status);
    if (form == "NFKD") form_ = icu::Normalizer2::getNFKDInstance(status);
    if (U_FAILURE(status) || !form_) fail(Code::internal, "normalizer", "ICU has no data for " + std::string(form));
    // The reference's tables are of Unicode 12.0: it leaves younger characters alone.
    known_ = icu::UnicodeSet(u"[:Age=12.0:]", status);
    if (U_FAILURE(status)) fail(Code::internal, "normalizer", std::string("ICU: ") + u_errorName(status));
    known_.freeze();
    filtered_ = std::make_unique<icu::FilteredNormalizer2>(*form_, known_);
  }
  void apply(std::string& text) const override {
    if (is_ascii(text)) return;
    UErrorCode status = U_ZERO_ERROR;
    std::string out;
    icu::StringByteSink<std::string> sink(&out);
    filtered_->normalizeUTF8(0, text, sink, nullptr, status);
    if (U_FAILURE(status)) fail(Code::internal, "normalizer", std::string("ICU: ") + u_errorName(status));
    text = std::move(out);
  }

 private:
  const icu::Normalizer2* form_ = nullptr;
  icu::UnicodeSet known_;
  std::unique_ptr<icu::FilteredNormalizer2> filtered_;  // borrows the two above
};

class Lowercase final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      const DecodedChar c = decode_utf8(text, at);
      append_lower(out, c.code);
      at += c.length;
    }
    text = std::move(out);
  }
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer {
 public:
  Replace(const std::string& pattern, std::string content, const std::string& where)
      : regex_(pattern, where), content_(std::move(content)) {}
  void apply(std::string& text) const override {
    RegexSearch search(regex_, text);
    std::string out;
    size_t from = 0, begin, end;
    bool any = false;
    while (search.next(begin, end)) {
      out.append(text, from, begin - from);
      out += content_;
      from = end;
      any = true;
    }
    if (!any) return;
    out.append(text, from);
    text = std::move(out);
  }

 private:
  Regex regex_;
  std::string content_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text) const override {
    size_t begin = 0, end = 0;
    bool seen = false;
    for (size_t at = 0; at < text.size();) {
      const DecodedChar c = decode_utf8(text, at);
      if (!is_space(c.code)) {
        if (!seen) begin = at;
        seen = true;
        end = at + c.length;
      }
      at += c.length;
    }
    if (!seen) begin = end = left_ || right_ ? 0 : text.size();
    if (!left_) begin = 0;
    if (!right_) end = text.size();
    if (!seen && (left_ || right_)) {
      text.clear();
      return;
    }
    text = text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

// Keeps, drops or maps one character at a time.
template <class Each>
void map_chars(std::string& text, const Each& each) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text, at);
    each(out, c.code);
    at += c.length;
  }
  text = std::move(out);
}

class StripAccents final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    map_chars(text, [](std::string& out, char32_t c) {
      if (!is_mark(c)) append_utf8(out, c);
    });
  }
};

// The cleaning that SentencePiece's nmt_* rules begin with.
class Nmt final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    map_chars(text, [](std::string& out, char32_t c) {
      if ((c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
      const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
                         c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      append_utf8(out, space ? U' ' : c);
    });
  }
};

class BertNormalizer final : public Normalizer {
 public:
  BertNormalizer(bool clean, bool cjk, bool accents, bool lower)
      : clean_(clean), cjk_(cjk), accents_(accents), lower_(lower), form_("NFD") {}
  void apply(std::string& text) const override {
    if (clean_) {
      map_chars(text, [](std::string& out, char32_t c) {
        if (c == 0 || c == 0xFFFD || is_control(c)) return;
        append_utf8(out, is_space(c) ? U' ' : c);
      });
    }
    if (cjk_) {
      map_chars(text, [](std::string& out, char32_t c) {
        if (is_cjk(c)) out += ' ';
        append_utf8(out, c);
        if (is_cjk(c)) out += ' ';
      });
    }
    if (accents_) {
      form_.apply(text);
      map_chars(text, [](std::string& out, char32_t c) {
        if (!is_accent(c)) append_utf8(out, c);
      });
    }
    if (lower_) Lowercase().apply(text);
  }

 private:
  bool clean_, cjk_, accents_, lower_;
  UnicodeForm form_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    std::string out;
    append_byte_level(out, text);
    text = std::move(out);
  }
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(std::string& text) const override {
    for (const auto& part : parts_) part->apply(text);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> make_unicode_normalizer(std::string_view form) { return std::make_unique<UnicodeForm>(form); }

std::unique_ptr<Normalizer> make_prepend_normalizer(std::string prefix) { return std::make_unique<Prepend>(std::move(prefix)); }

std::unique_ptr<Normalizer> make_strip_normalizer(bool left, bool right) { return std::make_unique<Strip>(left, right); }

std::unique_ptr<Normalizer> make_replace_normalizer(std::string_view literal, std::string content) {
  return std::make_unique<Replace>(escape_regex(literal), std::move(content), "normalizer");
}

std::unique_ptr<Normalizer> make_regex_normalizer(const std::string& regex, std::string content) {
  return std::make_unique<Replace>(regex, std::move(content), "normalizer");
}

std::unique_ptr<Normalizer> make_normalizer_sequence(std::vector<std::unique_ptr<Normalizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

namespace {

std::unique_ptr<Normalizer> read_replace(const JsonField& field) {
  const JsonField pattern = field.at("pattern");
  const std::string regex = pattern.has("Regex") ? pattern.at("Regex").text() : escape_regex(pattern.at("String").text());
  return std::make_unique<Replace>(regex, field.at("content").text(), field.file());
}

std::unique_ptr<Normalizer> read_bert(const JsonField& field) {
  const bool lower = field.flag("lowercase", true);
  return std::make_unique<BertNormalizer>(field.flag("clean_text", true), field.flag("handle_chinese_chars", true), field.flag("strip_accents", lower), lower);
}

std::unique_ptr<Normalizer> read_precompiled(const JsonField& field) {
  const JsonField map = field.at("precompiled_charsmap");
  return make_precompiled_normalizer(decode_base64(map.text(), map.file() + ": " + map.path()), field.file());
}

std::unique_ptr<Normalizer> read_sequence(const JsonField& field) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  for (const JsonField& part : field.at("normalizers").elements()) parts.push_back(make_normalizer(part));
  return std::make_unique<Sequence>(std::move(parts));
}

std::unique_ptr<Normalizer> read_form(const JsonField& field) { return make_unicode_normalizer(field.at("type").text()); }

struct Row {
  std::string_view type;
  std::unique_ptr<Normalizer> (*read)(const JsonField& field);
};
constexpr Row kRows[] = {
    {"NFC", read_form},
    {"NFD", read_form},
    {"NFKC", read_form},
    {"NFKD", read_form},
    {"Lowercase", [](const JsonField&) -> std::unique_ptr<Normalizer> { return std::make_unique<Lowercase>(); }},
    {"Prepend", [](const JsonField& field) { return make_prepend_normalizer(field.at("prepend").text()); }},
    {"Replace", read_replace},
    {"Strip", [](const JsonField& field) { return make_strip_normalizer(field.flag("strip_left", true), field.flag("strip_right", true)); }},
    {"StripAccents", [](const JsonField&) -> std::unique_ptr<Normalizer> { return std::make_unique<StripAccents>(); }},
    {"Nmt", [](const JsonField&) -> std::unique_ptr<Normalizer> { return std::make_unique<Nmt>(); }},
    {"Precompiled", read_precompiled},
    {"ByteLevel", [](const JsonField&) -> std::unique_ptr<Normalizer> { return std::make_unique<ByteLevelNormalizer>(); }},
    {"BertNormalizer", read_bert},
    {"Sequence", read_sequence},
};

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const JsonField& field) {
  const std::string type = field.at("type").text();
  std::string known;
  for (const Row& row : kRows) {
    if (row.type == type) return row.read(field);
    known += (known.empty() ? "" : ", ") + std::string(row.type);
  }
  field.refuse("is of type " + type + " (" + known + ")");
}

}  // namespace tandem
