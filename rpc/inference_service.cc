// Generate and the token calls. gRPC's threads and the engine's thread only leave word with a Generation; everything else happens on
// its text thread, which alone starts writes and finishes the call. After Finish it never touches the reactor again, so the reactor may
// go when gRPC is done with it, while the engine still holds the Generation.
#include <grpcpp/grpcpp.h>

#include "rpc/answer.h"
#include "rpc/convert.h"
#include "rpc/service_core.h"
#include "rpc/tandem.grpc.pb.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace tandem {
namespace {

class Generation;

class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateEvent> {
 public:
  explicit GenerateReactor(ServiceCore& core) : core_(core) { core_.open_calls.fetch_add(1); }
  void begin(std::shared_ptr<Generation> generation);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  ServiceCore& core_;
  std::shared_ptr<Generation> generation_;
};

class Generation final : public RequestSink, public TextJob, public std::enable_shared_from_this<Generation> {
 public:
  Generation(ServiceCore& core, GenerateReactor& reactor, grpc::CallbackServerContext& context, const v1::GenerateRequest& asked)
      : core_(core), reactor_(&reactor), context_(context), asked_(asked) {}

  // ---- any thread
  void push(RequestEvent event) override {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      events_.push_back(std::move(event));
    }
    core_.threads.wake(shared_from_this());
  }

  void write_done(bool ok) {
    {
      const std::lock_guard lock(mutex_);
      in_flight_ = false;
      gone_ = gone_ || !ok;
      if (!waiting_ && ok) return;  // nothing to say yet: the next event wakes the thread
      waiting_ = false;
    }
    core_.threads.wake(shared_from_this());
  }

  void cancelled() {
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
    }
    core_.threads.wake(shared_from_this());
  }

  // ---- before the text thread knows of it
  void refuse(const Error& error) { finish(error); }

  // ---- its text thread
  void work() override {
    if (reactor_ == nullptr) return;
    {
      const std::lock_guard lock(mutex_);
      taken_.swap(events_);
      left_ = gone_;
    }
    try {
      if (!begun_ && !left_) begin();
      for (RequestEvent& event : taken_) {
        if (!answer_) break;
        answer_->take(std::move(event));
        if (const auto index = answer_->take_match()) core_.engine.finish(id_, *index);
      }
    } catch (const Error& error) {
      failure_ = error;
    } catch (const std::exception& error) {
      failure_ = Error(Code::internal, "generate", error.what());
    }
    taken_.clear();
    advance();
  }

  void tick(Clock::time_point now) override {
    if (reactor_ == nullptr || slow_) return;
    {
      const std::lock_guard lock(mutex_);
      if (!in_flight_) return;
    }
    if (now - write_began_ < std::chrono::duration<double>(core_.options.slow_reader_seconds)) return;
    slow_ = true;
    core_.slow_readers.fetch_add(1);
    core_.engine.cancel(id_, Code::resource_exhausted);
    context_.TryCancel();  // the pending write fails, and the call ends by the usual way
  }

 private:
  void begin() {
    begun_ = true;
    if (core_.draining) fail(Code::unavailable, "server", "is draining (try another, or later)");
    const Ask ask = from_wire(asked_);
    id_ = ask.request_id;
    stream_ = ask.stream;
    Prepared prepared = prepare(ask, core_.text);
    id_ = prepared.request.id;
    set_deadline(prepared.request);
    answer_.emplace(core_.text, prepared);
    core_.requests.add(id_);
    listed_ = true;
    core_.engine.submit(std::move(prepared.request), shared_from_this());
    submitted_ = true;
    core_.threads.watch(shared_from_this());
  }

  void set_deadline(Request& request) const {
    const auto deadline = context_.deadline();
    if (deadline != std::chrono::system_clock::time_point::max()) {
      request.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(deadline - std::chrono::system_clock::now());
    } else if (core_.options.default_deadline_seconds > 0) {
      request.deadline =
          Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(core_.options.default_deadline_seconds));
    }
  }

  bool busy() {  // a write is pending; its end will wake us
    const std::lock_guard lock(mutex_);
    waiting_ = in_flight_;
    return in_flight_;
  }

  void advance() {
    if (left_) {
      if (busy()) return;
      const bool late = context_.deadline() <= std::chrono::system_clock::now();
      const Code why = slow_ ? Code::resource_exhausted : late ? Code::deadline_exceeded : Code::cancelled;
      if (submitted_ && !answer_->done()) core_.engine.cancel(id_, why);
      return finish(Error(why, "call", slow_ ? "nobody reads the answer" : late ? "the deadline has passed" : "cancelled by the client"));
    }
    if (!failure_ && answer_ && answer_->done() && answer_->error()) failure_ = answer_->error();
    if (failure_) {
      if (busy()) return;
      if (submitted_ && !answer_->done()) core_.engine.cancel(id_, failure_->code);  // a bug on this side
      const bool retryable = core_.retry_ms(failure_->code).has_value();
      if (answer_ && answer_->has_delta() && (sequence_ > 0 || !retryable)) return write_delta();
      return finish(*failure_);
    }
    if (!answer_) return;
    if (answer_->has_delta() && (stream_ || answer_->done())) {
      if (!busy()) write_delta();
      return;
    }
    if (!answer_->done() || busy()) return;
    if (!told_end_) {
      told_end_ = true;
      begin_message();
      to_wire(answer_->end(), *message_.mutable_finished());
      return write(grpc::WriteOptions().set_buffer_hint());
    }
    begin_message();
    to_wire(answer_->end(), *message_.mutable_final());
    finish(std::nullopt);
  }

  void write_delta() {
    begin_message();
    to_wire(answer_->take_delta(), *message_.mutable_delta());
    write(grpc::WriteOptions());
  }

  void begin_message() {
    message_.Clear();
    message_.set_request_id(id_);
    message_.set_sequence(++sequence_);
  }

  void write(grpc::WriteOptions options) {
    write_began_ = Clock::now();
    {
      const std::lock_guard lock(mutex_);
      in_flight_ = true;
      // Whatever else is ready is written when this is done.
      waiting_ = failure_ || answer_->done();
    }
    reactor_->StartWrite(&message_, options);
  }

  // The last act. Without an error the message at hand goes out with the status.
  void finish(const std::optional<Error>& error) {
    if (listed_) core_.requests.remove(id_);
    if (submitted_) core_.threads.forget(shared_from_this());
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      events_.clear();
    }
    if (!id_.empty() && answer_) {  // checked by then: metadata takes only printable characters
      context_.AddTrailingMetadata("x-request-id", id_);
      context_.AddTrailingMetadata("x-prompt-tokens", std::to_string(answer_->end().prompt_tokens));
      context_.AddTrailingMetadata("x-completion-tokens", std::to_string(answer_->end().completion_tokens));
    }
    GenerateReactor* reactor = reactor_;
    reactor_ = nullptr;
    if (!error) {
      reactor->StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    }
    const std::optional<int> retry = core_.retry_ms(error->code);
    if (retry && sequence_ == 0) context_.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(*retry));
    reactor->Finish(to_status(*error, retry));
  }

  ServiceCore& core_;
  GenerateReactor* reactor_;  // null once finished
  grpc::CallbackServerContext& context_;
  const v1::GenerateRequest& asked_;

  std::mutex mutex_;
  std::vector<RequestEvent> events_;
  bool in_flight_ = false;  // a write
  bool waiting_ = false;    // the text thread has more to write
  bool gone_ = false;       // the client
  bool closed_ = false;     // no more events are wanted

  // its text thread's
  std::vector<RequestEvent> taken_;
  std::string id_;
  std::optional<Answer> answer_;
  std::optional<Error> failure_;
  v1::GenerateEvent message_;
  uint64_t sequence_ = 0;
  Clock::time_point write_began_{};
  bool stream_ = true, begun_ = false, listed_ = false, submitted_ = false, told_end_ = false, slow_ = false, left_ = false;
};

void GenerateReactor::begin(std::shared_ptr<Generation> generation) {
  generation_ = std::move(generation);
  if (!core_.threads.start(generation_)) {
    generation_->refuse(Error(Code::resource_exhausted, "queue", "too many requests are waiting to be tokenized (try again)"));
  }
}
void GenerateReactor::OnWriteDone(bool ok) { generation_->write_done(ok); }
void GenerateReactor::OnCancel() { generation_->cancelled(); }
void GenerateReactor::OnDone() {
  ServiceCore& core = core_;
  delete this;
  core.open_calls.fetch_sub(1);
}

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(ServiceCore& core) : core_(core) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    auto* reactor = new GenerateReactor(core_);
    reactor->begin(std::make_shared<Generation>(core_, *reactor, *context, *request));
    return reactor;
  }

  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context, const v1::CountTokensRequest* request,
                                        v1::CountTokensResponse* response) override {
    return unary(context, [this, request, response] {
      const Ask ask = from_wire(*request);
      check_model(ask.model, core_.text);
      response->set_tokens(static_cast<int32_t>(tokenize_input(ask, core_.text, true, true).size()));
    });
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return unary(context, [this, request, response] {
      const Ask ask = from_wire(*request);
      check_model(ask.model, core_.text);
      const bool special = !request->has_add_special_tokens() || request->add_special_tokens();
      const bool prompt = !request->has_add_generation_prompt() || request->add_generation_prompt();
      for (const int32_t id : tokenize_input(ask, core_.text, special, prompt, response->mutable_text())) {
        response->add_ids(id);
        response->add_pieces(replace_invalid_utf8(core_.text.tokenizer->piece(id)));
      }
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return unary(context, [this, request, response] {
      check_model(request->model(), core_.text);
      if (core_.text.tokenizer == nullptr) fail(Code::failed_precondition, "ids", "the model has no tokenizer");
      for (const int32_t id : request->ids()) {
        if (id < 0 || id >= core_.text.vocab) bad_input("ids", "id " + std::to_string(id) + " is outside of the vocabulary");
      }
      const std::vector<int32_t> ids(request->ids().begin(), request->ids().end());
      response->set_text(core_.text.tokenizer->decode(ids, request->skip_special_tokens()));
    });
  }

 private:
  // Runs on a text thread: a long text must not hold up gRPC's threads.
  template <class Work>
  grpc::ServerUnaryReactor* unary(grpc::CallbackServerContext* context, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const auto task = [reactor, work] {
      grpc::Status status;
      try {
        work();
      } catch (const Error& error) {
        status = to_status(error);
      } catch (const std::exception& error) {
        status = to_status(Error(Code::internal, "tokens", error.what()));
      }
      reactor->Finish(status);
    };
    if (!core_.threads.run(task)) {
      reactor->Finish(to_status(Error(Code::resource_exhausted, "queue", "too many requests are waiting (try again)"),
                                core_.retry_ms(Code::resource_exhausted)));
    }
    return reactor;
  }

  ServiceCore& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_inference_service(ServiceCore& core) { return std::make_unique<InferenceService>(core); }

}  // namespace tandem
