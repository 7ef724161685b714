#include "rpc/answer.h"

#include "runtime/text/detokenizer.h"
#include "runtime/text/stop_matcher.h"

namespace tandem {

struct Answer::Core {
  Core(const TextSide& text, const Prepared& prepared) : text(text), stops(prepared.stop_strings) {
    if (text.tokenizer != nullptr) words.emplace(*text.tokenizer);
    const auto& prompt = prepared.request.prompt;
    const size_t own = prompt.size() - prepared.resume.size();
    end.prompt_tokens = static_cast<int32_t>(own);
    end.seed = prepared.request.sampling.seed;
    end.compute = text.compute;
    if (prepared.return_prompt_ids) end.prompt_ids.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(own));
    if (words) {
      for (const int32_t id : prepared.resume) stops.feed(words->feed(id));  // was shown before
    }
    if (stops.matched())
      bad_input("resume.token_ids", "hold the stop string '" + stops.matched_stop() + "' already: nothing is left to generate");
    if (prepared.echo && words) delta.text = text.tokenizer->decode(std::span(prompt).first(own), true);
    with_logprobs = prepared.request.sampling.logprobs >= 0;
  }

  void take(RequestEvent event) {
    if (done) return;
    for (StepToken& token : event.tokens) {
      if (stops.matched()) break;
      delta.token_ids.push_back(token.id);
      if (with_logprobs) delta.logprobs.push_back({token.id, token.logprob, std::move(token.top)});
      ++end.completion_tokens;
      if (words) show(words->feed(token.id));
    }
    if (event.finish == FinishReason::none && !event.error) return;
    done = true;
    if (words && !stops.matched() && !event.error) {
      show(words->flush());
      if (!stops.matched()) delta.text += stops.flush();
    }
    end.cached_tokens = event.cached_tokens;
    end.timings = event.timings;
    if (stops.matched()) {  // whatever the engine met meanwhile: the answer was complete
      end.reason = FinishReason::stop_string;
      end.matched = stops.matched_stop();
    } else if (event.error) {
      error = std::move(event.error);
    } else {
      end.reason = event.finish;
      if (event.finish == FinishReason::stop && event.matched_id >= 0) {
        end.matched_id = event.matched_id;
        if (text.tokenizer != nullptr) end.matched = text.tokenizer->piece(event.matched_id);
      }
    }
  }

  void show(const std::string& certain) {
    if (certain.empty()) return;
    delta.text += stops.feed(certain);
    if (stops.matched()) match = end.completion_tokens - 1;
  }

  const TextSide& text;
  std::optional<Detokenizer> words;
  StopMatcher stops;
  AnswerDelta delta;
  AnswerEnd end;
  std::optional<Error> error;
  std::optional<int32_t> match;
  bool with_logprobs = false, done = false;
};

Answer::Answer(const TextSide& text, const Prepared& prepared) : core_(std::make_unique<Core>(text, prepared)) {}
Answer::~Answer() = default;
Answer::Answer(Answer&&) noexcept = default;
Answer& Answer::operator=(Answer&&) noexcept = default;

void Answer::take(RequestEvent event) { core_->take(std::move(event)); }

std::optional<int32_t> Answer::take_match() {
  std::optional<int32_t> match;
  std::swap(match, core_->match);
  return match;
}

AnswerDelta Answer::take_delta() {
  AnswerDelta delta;
  std::swap(delta, core_->delta);
  return delta;
}

bool Answer::has_delta() const { return !core_->delta.empty(); }
bool Answer::done() const { return core_->done; }
const std::optional<Error>& Answer::error() const { return core_->error; }
const AnswerEnd& Answer::end() const { return core_->end; }

}  // namespace tandem
