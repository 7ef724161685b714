#include "runtime/text/decoder.h"

#include <optional>

#include "runtime/text/byte_level.h"
#include "runtime/text/regex.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  size_t from = 0;
  for (size_t at; (at = text.find(pattern, from)) != std::string_view::npos; from = at + pattern.size()) {
    out += text.substr(from, at - from);
    out += content;
  }
  out += text.substr(from);
  return out;
}

std::optional<uint8_t> byte_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  int value = 0;
  for (char c : piece.substr(3, 2)) {
    int digit;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else {
      return std::nullopt;
    }
    value = value * 16 + digit;
  }
  return static_cast<uint8_t>(value);
}

class Sink final : public DecoderStage {
 public:
  void push(std::string_view part, bool) override { text += part; }
  void finish() override {}
  std::string text;
};

// A stage that wants whole pieces.
class WholePieceStage : public DecoderStage {
 public:
  void push(std::string_view text, bool end) final {
    if (end && held_.empty()) {
      piece(text);
      return;
    }
    held_ += text;
    if (!end) return;
    const std::string whole = std::move(held_);
    held_.clear();
    piece(whole);
  }
  void finish() override { next->finish(); }
  virtual void piece(std::string_view text) = 0;

 private:
  std::string held_;
};

class ByteLevelStep final : public DecoderStep {
  class Stage final : public WholePieceStage {
    void piece(std::string_view text) override {
      bytes_.clear();
      if (!append_from_byte_level(bytes_, text)) bytes_ = text;
      next->push(stream_.feed(bytes_), false);
    }
    void finish() override {
      next->push(stream_.flush(), true);
      next->finish();
    }
    std::string bytes_;
    Utf8Stream stream_;
  };

 public:
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(); }
  std::string bytes(std::string piece) const override {
    std::string out;
    return append_from_byte_level(out, piece) ? out : piece;
  }
};

// A run of byte pieces is text when all of it is valid, otherwise one U+FFFD for each byte: so it is certain only at its end.
class ByteFallbackStep final : public DecoderStep {
  class Stage final : public WholePieceStage {
    void piece(std::string_view text) override {
      if (const auto byte = byte_piece(text)) {
        run_ += static_cast<char>(*byte);
        return;
      }
      end_run();
      next->push(text, true);
    }
    void finish() override {
      end_run();
      next->finish();
    }
    void end_run() {
      if (run_.empty()) return;
      if (is_valid_utf8(run_)) {
        next->push(run_, true);
      } else {
        for (size_t i = 0; i < run_.size(); ++i) next->push(replacement_character, true);
      }
      run_.clear();
    }
    std::string run_;
  };

 public:
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(); }
  std::string bytes(std::string piece) const override {
    const auto byte = byte_piece(piece);
    return byte ? std::string(1, static_cast<char>(*byte)) : piece;
  }
};

class FuseStep final : public DecoderStep {
  class Stage final : public DecoderStage {
    void push(std::string_view text, bool) override { next->push(text, false); }
    void finish() override {
      next->push({}, true);
      next->finish();
    }
  };

 public:
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(); }
};

class StripStep final : public DecoderStep {
  class Stage final : public DecoderStage {
   public:
    explicit Stage(const StripStep& step) : step_(step), leading_(step.start_) {}

   private:
    void push(std::string_view text, bool end) override {
      const std::string_view content = step_.content_;
      while (leading_ && !text.empty()) {
        if (!text.starts_with(content)) {
          leading_ = 0;
          break;
        }
        text.remove_prefix(content.size());
        --leading_;
      }
      size_t trailing = 0;
      std::string_view kept = text;
      while (trailing < step_.stop_ && kept.size() >= content.size() && kept.ends_with(content)) {
        kept.remove_suffix(content.size());
        ++trailing;
      }
      std::string out;
      if (kept.empty()) {  // nothing but content: the oldest of it no longer ends the piece
        held_ += trailing;
        for (; held_ > step_.stop_; --held_) out += content;
      } else {
        for (; held_ > 0; --held_) out += content;
        out += kept;
        held_ = trailing;
      }
      next->push(out, end);
      if (!end) return;
      held_ = 0;
      leading_ = step_.start_;
    }
    void finish() override { next->finish(); }
    const StripStep& step_;
    size_t leading_, held_ = 0;
  };

 public:
  StripStep(std::string content, size_t start, size_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(*this); }

 private:
  std::string content_;
  size_t start_, stop_;
};

class ReplaceStep final : public DecoderStep {
  class Stage final : public DecoderStage {
   public:
    explicit Stage(const ReplaceStep& step) : step_(step) {}

   private:
    void push(std::string_view text, bool end) override {
      const std::string_view pattern = step_.pattern_;
      if (end && held_.empty()) {
        next->push(replace_all(text, pattern, step_.content_), true);
        return;
      }
      held_ += text;
      size_t keep = 0;  // the longest end that may begin the pattern
      std::string_view rest = held_;
      std::string out;
      for (size_t at; (at = rest.find(pattern)) != std::string_view::npos; rest.remove_prefix(at + pattern.size())) {
        out += rest.substr(0, at);
        out += step_.content_;
      }
      if (!end) {
        keep = std::min(pattern.size() - 1, rest.size());
        while (keep && !pattern.starts_with(rest.substr(rest.size() - keep))) --keep;
      }
      out += rest.substr(0, rest.size() - keep);
      held_ = std::string(rest.substr(rest.size() - keep));
      next->push(out, end);
    }
    void finish() override { next->finish(); }
    const ReplaceStep& step_;
    std::string held_;
  };

 public:
  ReplaceStep(std::string pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(*this); }
  std::string bytes(std::string piece) const override { return replace_all(piece, pattern_, content_); }

 private:
  std::string pattern_, content_;
};

class RegexReplaceStep final : public DecoderStep {
  class Stage final : public WholePieceStage {
   public:
    explicit Stage(const RegexReplaceStep& step) : step_(step) {}

   private:
    void piece(std::string_view text) override { next->push(step_.replace(text), true); }
    const RegexReplaceStep& step_;
  };

 public:
  RegexReplaceStep(const std::string& pattern, std::string content, const std::string& where)
      : regex_(pattern, where), content_(std::move(content)) {}
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(*this); }
  std::string bytes(std::string piece) const override { return replace(piece); }
  std::string replace(std::string_view text) const {
    RegexSearch search(regex_, text);
    std::string out;
    size_t from = 0, begin, end;
    while (search.next(begin, end)) {
      out += text.substr(from, begin - from);
      out += content_;
      from = end;
    }
    out += text.substr(from);
    return out;
  }

 private:
  Regex regex_;
  std::string content_;
};

class MetaspaceStep final : public DecoderStep {
  class Stage final : public DecoderStage {
   public:
    explicit Stage(const MetaspaceStep& step) : step_(step) {}

   private:
    void push(std::string_view text, bool end) override {
      next->push(replace_all(text, step_.replacement_, first_ && step_.drop_first_ ? "" : " "), end);
      if (end) first_ = false;
    }
    void finish() override { next->finish(); }
    const MetaspaceStep& step_;
    bool first_ = true;
  };

 public:
  MetaspaceStep(std::string replacement, bool drop_first) : replacement_(std::move(replacement)), drop_first_(drop_first) {}
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(*this); }
  std::string bytes(std::string piece) const override { return replace_all(piece, replacement_, " "); }

 private:
  std::string replacement_;
  bool drop_first_;
};

// The suffix that marks the end of a word becomes a space, except at the very end.
class WordSuffixStep final : public DecoderStep {
  class Stage final : public WholePieceStage {
   public:
    explicit Stage(const WordSuffixStep& step) : step_(step) {}

   private:
    void piece(std::string_view text) override {
      if (last_) next->push(replace_all(*last_, step_.suffix_, " "), true);
      last_ = std::string(text);
    }
    void finish() override {
      if (last_) next->push(replace_all(*last_, step_.suffix_, ""), true);
      next->finish();
    }
    const WordSuffixStep& step_;
    std::optional<std::string> last_;
  };

 public:
  explicit WordSuffixStep(std::string suffix) : suffix_(std::move(suffix)) {}
  std::unique_ptr<DecoderStage> start() const override { return std::make_unique<Stage>(*this); }
  std::string bytes(std::string piece) const override { return replace_all(piece, suffix_, " "); }

 private:
  std::string suffix_;
};

class SpaceJoinStage final : public DecoderStage {
 public:
  void push(std::string_view text, bool end) override {
    if (begin_ && !first_) next->push(" ", false);
    begin_ = end;
    first_ = false;
    next->push(text, end);
  }
  void finish() override { next->finish(); }

 private:
  bool first_ = true, begin_ = true;
};

}  // namespace

std::string DecoderStream::feed(std::string_view piece) {
  stages_.front()->push(piece, true);
  return std::exchange(*out_, {});
}

std::string DecoderStream::flush() {
  stages_.front()->finish();
  return std::exchange(*out_, {});
}

DecoderStream Decoder::stream() const {
  DecoderStream stream;
  for (const auto& step : steps) stream.stages_.push_back(step->start());
  if (steps.empty()) stream.stages_.push_back(std::make_unique<SpaceJoinStage>());
  auto sink = std::make_unique<Sink>();
  stream.out_ = &sink->text;
  stream.stages_.push_back(std::move(sink));
  for (size_t i = 0; i + 1 < stream.stages_.size(); ++i) stream.stages_[i]->next = stream.stages_[i + 1].get();
  return stream;
}

std::string Decoder::bytes(std::string_view piece) const {
  std::string out(piece);
  for (const auto& step : steps) out = step->bytes(std::move(out));
  return out;
}

void add_byte_level_decoder(Decoder& decoder) { decoder.steps.push_back(std::make_unique<ByteLevelStep>()); }

void add_metaspace_decoder(Decoder& decoder, bool drop_first_space) { decoder.steps.push_back(std::make_unique<MetaspaceStep>("\xE2\x96\x81", drop_first_space)); }

void add_sentence_piece_decoder(Decoder& decoder, bool strip_first_space) {
  decoder.steps.push_back(std::make_unique<ReplaceStep>("\xE2\x96\x81", " "));
  decoder.steps.push_back(std::make_unique<ByteFallbackStep>());
  decoder.steps.push_back(std::make_unique<FuseStep>());
  if (strip_first_space) decoder.steps.push_back(std::make_unique<StripStep>(" ", 1, 0));
}

void add_decoder(const JsonField& field, Decoder& decoder) {
  const std::string type = field.at("type").text();
  auto& steps = decoder.steps;
  auto one_char = [](const JsonField& f) {
    std::string text = f.text();
    if (text.empty() || decode_utf8(text, 0).length != text.size()) f.refuse("is not one character (one)");
    return text;
  };
  if (type == "ByteLevel") {
    add_byte_level_decoder(decoder);
  } else if (type == "ByteFallback") {
    steps.push_back(std::make_unique<ByteFallbackStep>());
  } else if (type == "Fuse") {
    steps.push_back(std::make_unique<FuseStep>());
  } else if (type == "Strip") {
    const auto start = static_cast<size_t>(field.integer("start", 0, 0, 1 << 20)),
               stop = static_cast<size_t>(field.integer("stop", 0, 0, 1 << 20));
    steps.push_back(std::make_unique<StripStep>(one_char(field.at("content")), start, stop));
  } else if (type == "Replace") {
    const JsonField pattern = field.at("pattern");
    if (pattern.has("Regex")) {
      steps.push_back(std::make_unique<RegexReplaceStep>(pattern.at("Regex").text(), field.at("content").text(), field.file()));
    } else {
      const std::string literal = pattern.at("String").text();
      if (literal.empty()) pattern.refuse("is empty (at least one character)");
      steps.push_back(std::make_unique<ReplaceStep>(literal, field.at("content").text()));
    }
  } else if (type == "Metaspace") {
    const bool prefix = field.has("prepend_scheme") ? field.text("prepend_scheme", "") != "never" : field.flag("add_prefix_space", true);
    steps.push_back(std::make_unique<MetaspaceStep>(field.has("replacement") ? one_char(field.at("replacement")) : "\xE2\x96\x81", prefix));
  } else if (type == "BPEDecoder") {
    const std::string suffix = field.text("suffix", "</w>");
    if (suffix.empty()) field.refuse("has an empty suffix (at least one character)");
    steps.push_back(std::make_unique<WordSuffixStep>(suffix));
  } else if (type == "Sequence") {
    for (const JsonField& part : field.at("decoders").elements()) add_decoder(part, decoder);
  } else {
    field.refuse("is of type " + type + " (ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, BPEDecoder, Sequence)");
  }
}

}  // namespace tandem
