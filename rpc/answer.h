// One answer as it grows: takes what the engine tells about a request, yields text. Never half a character, never the beginning of a
// stop string; tokens behind a stop string are dropped. Belongs to one thread; borrows the TextSide.
//
//   Answer answer(text, prepared);
//   for (each event) { answer.take(event); if (auto i = answer.take_match()) engine.finish(id, *i); show(answer.take_delta()); }
//   until answer.done(): answer.error() or answer.end().
#pragma once
#include <memory>
#include <optional>

#include "kernels/base/error.h"
#include "rpc/ask.h"
#include "rpc/prepare.h"
#include "rpc/text_side.h"

namespace tandem {

class Answer {
 public:
  Answer(const TextSide& text, const Prepared& prepared);
  ~Answer();
  Answer(Answer&&) noexcept;
  Answer& operator=(Answer&&) noexcept;

  void take(RequestEvent event);
  std::optional<int32_t> take_match();  // once, when a stop string was found: the index that Engine::finish wants
  AnswerDelta take_delta();             // what is certain since the last call
  bool has_delta() const;
  bool done() const;  // the terminal event was taken
  const std::optional<Error>& error() const;
  const AnswerEnd& end() const;  // valid when done() without error()

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace tandem
