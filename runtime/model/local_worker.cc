#include "runtime/model/local_worker.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "runtime/model/slots.h"
#include "runtime/model/stage.h"
#include "sharding/comm/comms.h"
#include "sharding/comm/mailbox.h"

namespace tandem {
namespace {

using Seconds = std::chrono::duration<double>;

// What a rank's thread does. On a device that works by itself, forward and sample only hand it work, and drawn waits for it.
constexpr TraceName rank_span(const char* name) { return {name, "rank", TracePhase::span, "step"}; }
constexpr TraceName kStepSpan{"step", "rank", TracePhase::span, "step", {"rows", "sequences", "decode_rows", "prefill_rows", "epoch"}};
constexpr TraceName kMailSpan = rank_span("take mail"), kReceiveSpan = rank_span("receive hidden rows"), kForwardSpan = rank_span("forward"),
                    kSendSpan = rank_span("send hidden rows"), kSampleSpan = rank_span("sample"), kDrawnSpan = rank_span("wait for drawn ids"),
                    kPostSpan = rank_span("post mail");

class LocalWorker final : public Worker {
 public:
  LocalWorker(WorkerSettings settings, WorkerCallbacks callbacks) : settings_(std::move(settings)), callbacks_(std::move(callbacks)) {
    thread_ = std::thread([this] { live(); });
  }
  ~LocalWorker() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      news_ = true;
      if (communicator_) communicator_->abort();
    }
    wake_.notify_one();
    thread_.join();
  }
  void submit(StepBytes step) override {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(step));
      news_ = true;
    }
    wake_.notify_one();
  }

 private:
  void live() {
    try {
      start();
      callbacks_.ready();
      while (StepBytes bytes = next()) {
        const Step step = decode_step(*bytes);
        execute(step);
        if (callbacks_.progress) callbacks_.progress(step.number);
        if (undrawn_.size() > 1) finish_oldest();  // one step stays ahead of its result
      }
    } catch (const Error& error) {
      report(error);
    } catch (const std::exception& error) {
      report(Error(Code::internal, "rank " + std::to_string(settings_.rank), error.what()));
    }
    // Ends here, on the thread that used them.
    mailbox_.reset();
    stage_.reset();
    peers_.reset();
    {
      std::lock_guard lock(mutex_);
      communicator_.reset();
    }
    backend_.reset();
  }

  void report(const Error& error) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;  // the end was asked for; a wait that it broke is no failure
    }
    callbacks_.failed(error);
  }

  void start() {
    const Plan& plan = *settings_.plan;
    mesh_ = plan.mesh;
    backend_ = settings_.backend();
    if (settings_.communicator) {
      auto communicator = settings_.communicator(*backend_);
      std::lock_guard lock(mutex_);
      communicator_ = std::move(communicator);
      if (communicator_ && stopping_) communicator_->abort();
    }
    if (communicator_) {
      peers_ = settings_.peers ? settings_.peers(*communicator_, *backend_) : make_peer_group(*communicator_, mesh_);
      mailbox_ = make_mailbox(*communicator_, mesh_);
    }
    stage_ = std::make_unique<Stage>(*settings_.blueprint, plan, settings_.rank, settings_.all_logits, *backend_, peers_.get(), [this](const LoadProgress& done) {
      if (stop_requested()) fail(Code::cancelled, "load", "stopped");
      if (settings_.progress) settings_.progress(done);
    });
    slots_.emplace(stage_->bucket().context, stage_->bucket().page_tokens);
    const auto rows = static_cast<size_t>(stage_->bucket().rows), sequences = static_cast<size_t>(stage_->bucket().sequences);
    ids_.reserve(rows);
    positions_.reserve(rows);
    sequences_.reserve(sequences);
    heads_.reserve(static_cast<size_t>(stage_->bucket().heads));
    samples_.reserve(sequences);
    sampled_.reserve(sequences);
    leads_ = mesh_.member(settings_.rank) == 0 && stage_->range().head;
    // Alone in the pipeline, a device may go on with ids that the host has not seen; every member of the stage then draws for itself.
    keeps_ids_ = mesh_.pp == 1 && stage_->executable().keeps_ids();
    samples_here_ = stage_->range().head && (leads_ || keeps_ids_);
  }

  bool stop_requested() {
    std::lock_guard lock(mutex_);
    return stopping_;
  }

  // The next step; null when the worker shall end. While none is there, mail that has come is taken, so that a poster never waits for
  // a stage that has nothing to do.
  StepBytes next() {
    auto nap = std::chrono::microseconds(50);
    std::unique_lock lock(mutex_);
    while (queue_.empty() && !stopping_) {
      if (!undrawn_.empty()) {  // see what the device has drawn, but a step that comes meanwhile goes first: the device shall not run dry
        news_ = false;
        lock.unlock();
        if (drawn_before_news()) finish_oldest();
        lock.lock();
        continue;
      }
      if (posted_.empty()) {
        wake_.wait(lock);
        continue;
      }
      lock.unlock();
      const bool came = !mailbox_ || mailbox_->ready();
      if (came) take_mail();
      lock.lock();
      if (!came && queue_.empty() && !stopping_) {
        wake_.wait_for(lock, nap);
        nap = std::min(nap * 2, std::chrono::microseconds(1000));
      }
    }
    if (stopping_) return nullptr;
    StepBytes step = std::move(queue_.front());
    queue_.pop_front();
    return step;
  }

  bool drawn_before_news() {
    const Undrawn& oldest = undrawn_.front();
    if (oldest.owners.empty()) return true;
    const TraceSpan span(trace(), kDrawnSpan, oldest.result.number);
    return stage_->executable().wait_drawn(news_);
  }

  struct Posted { uint64_t step; std::vector<std::pair<SlotId, uint32_t>> owners; };

  void take_mail() {
    const Posted posted = std::move(posted_.front());
    posted_.pop_front();
    const TraceSpan span(trace(), kMailSpan, posted.step);
    if (!mailbox_) {
      for (const auto& [slot, serial, id] : own_mail_.front()) slots_->append(slot, serial, id);
      own_mail_.pop_front();
      return;
    }
    const std::vector<MailItem> items = mailbox_->wait(posted.step);
    for (size_t i = 0; i < items.size() && i < posted.owners.size(); ++i) slots_->append(items[i].slot, posted.owners[i].second, items[i].id);
  }

  void execute(const Step& step) {
    const auto started = std::chrono::steady_clock::now();
    if (step.number != last_step_ + 1) fail(Code::internal, "step", "number " + std::to_string(step.number) + " follows " + std::to_string(last_step_));
    last_step_ = step.number;
    TraceSpan whole(trace(), kStepSpan, step.number);
    const bool embeds = stage_->range().embedding;
    if (embeds) {
      while (!posted_.empty() && posted_.front().step <= step.ids_from) take_mail();
    }
    slots_->apply(step);
    for (const PageCopy& copy : step.copies) {
      const std::pair<int32_t, int32_t> pair{copy.from, copy.to};
      stage_->executable().copy_pages(copy.group, {&pair, 1});
    }
    gather(step);
    if (trace()) describe(step, whole);
    if (step.digest != 0 && step.digest != slots_->digest()) {
      fail(Code::internal, "step " + std::to_string(step.number), "leaves other slots on rank " + std::to_string(settings_.rank) + " than the scheduler knows");
    }
    Undrawn result{{.number = step.number, .epoch = step.epoch}, {}, started};
    if (!ids_.empty()) {
      const size_t bytes = ids_.size() * static_cast<size_t>(stage_->hidden()) * sizeof(float);
      const int stride = mesh_.group_size();
      if (!embeds) {
        const TraceSpan span(trace(), kReceiveSpan, step.number);
        communicator_->receive(settings_.rank - stride, kHiddenChannel, stage_->incoming(), bytes);
      }
      const StepRows rows{static_cast<int32_t>(ids_.size()), ids_.data(), positions_.data(), sequences_, heads_};
      {
        const TraceSpan span(trace(), kForwardSpan, step.number);
        stage_->executable().forward(rows, embeds ? nullptr : stage_->incoming(), stage_->range().head ? nullptr : stage_->outgoing());
      }
      if (!stage_->range().head) {
        const TraceSpan span(trace(), kSendSpan, step.number);
        communicator_->send(settings_.rank + stride, kHiddenChannel, stage_->outgoing(), bytes);
      }
      if (samples_here_) sample(step, result);
    }
    if (embeds && !keeps_ids_ && !owners_.empty()) posted_.push_back({step.number, owners_});
    if (!samples_here_) return;
    undrawn_.push_back(std::move(result));
    if (!keeps_ids_ || needs_ids_) finish_oldest();
  }

  // The step's rows in the order of its sequences.
  void gather(const Step& step) {
    ids_.clear();
    positions_.clear();
    sequences_.clear();
    heads_.clear();
    owners_.clear();
    const bool embeds = stage_->range().embedding;
    for (const StepRow& row : step.rows) {
      Slot& slot = (*slots_)[row.slot];
      SequenceRows sequence{row.slot, static_cast<int32_t>(ids_.size()), row.tokens, slot.length, {}};
      for (int group = 0; group < kMaxKvGroups; ++group) sequence.pages[group] = slot.pages[group].data();
      const int32_t end = slot.length + row.tokens;
      if (row.tokens < 1 || end > stage_->bucket().context || static_cast<int64_t>(slot.pages[0].size()) * stage_->bucket().page_tokens < end) {
        fail(Code::internal, "step", "runs tokens up to " + std::to_string(end) + " of slot " + std::to_string(row.slot) + " without pages for them");
      }
      if (embeds && !keeps_ids_ && static_cast<size_t>(end) > slot.ids.size()) {
        fail(Code::internal, "step", "runs token " + std::to_string(end) + " of slot " + std::to_string(row.slot) + ", whose id is not known");
      }
      for (int32_t position = slot.length; position < end; ++position) {
        const auto known = static_cast<size_t>(position) < slot.ids.size();
        ids_.push_back(!embeds ? 0 : known ? slot.ids[static_cast<size_t>(position)] : kDrawnId);
        positions_.push_back(position);
        if (row.all_logits) heads_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      }
      if (row.sample) {
        if (!row.all_logits) heads_.push_back(static_cast<int32_t>(ids_.size()) - 1);
        owners_.emplace_back(row.slot, slot.serial);
      }
      slot.length = end;
      sequences_.push_back(sequence);
    }
    if (static_cast<int32_t>(ids_.size()) > stage_->bucket().rows || static_cast<int32_t>(heads_.size()) > stage_->bucket().heads) {
      fail(Code::internal, "step", "has " + std::to_string(ids_.size()) + " rows (the plan allows " + std::to_string(stage_->bucket().rows) + ")");
    }
  }

  TraceTrack* trace() const { return settings_.trace.get(); }

  // After gather().
  void describe(const Step& step, TraceSpan& span) {
    int32_t decoding = 0;
    for (const StepRow& row : step.rows) {
      const Slot& slot = (*slots_)[row.slot];
      if (slot.length > slot.admitted) ++decoding;
    }
    const auto rows = static_cast<int32_t>(ids_.size());
    span.arguments({rows, static_cast<int32_t>(step.rows.size()), decoding, rows - decoding, static_cast<int32_t>(step.epoch)});
  }

  // A step whose tokens are being drawn.
  struct Undrawn {
    StepResult result;
    std::vector<std::pair<SlotId, uint32_t>> owners;  // of its sampling rows
    std::chrono::steady_clock::time_point started;
  };

  void sample(const Step& step, Undrawn& undrawn) {
    samples_.clear();
    needs_ids_ = false;
    int32_t head = 0;
    for (const StepRow& row : step.rows) {
      Slot& slot = (*slots_)[row.slot];
      if (row.all_logits) {
        const auto vocab = static_cast<size_t>(stage_->vocab());
        const float* first = stage_->executable().logits() + static_cast<size_t>(head) * vocab;
        if (leads_) {
          undrawn.result.logits.push_back(
              {row.slot, slot.serial, slot.length - row.tokens, row.tokens, {first, first + static_cast<size_t>(row.tokens) * vocab}});
        }
        head += row.tokens;
      } else if (row.sample) {
        ++head;
      }
      if (!row.sample) continue;
      samples_.push_back({head - 1, row.slot, slot.length, &slot.sampling, slot.counts, forbidden_now(slot, stage_->vocab()), slot.allowed});
      needs_ids_ |= follows_ids(slot.sampling);  // the next draw depends on this one's id, through counts that the host keeps
    }
    if (samples_.empty()) return;
    {
      const TraceSpan span(trace(), kSampleSpan, step.number);
      stage_->executable().sample(samples_);
    }
    for (const auto& [slot, serial] : owners_) ++(*slots_)[slot].generated;
    undrawn.owners = owners_;
  }

  // Waits for the oldest step's tokens and tells of them.
  void finish_oldest() {
    Undrawn undrawn = std::move(undrawn_.front());
    undrawn_.pop_front();
    StepResult& result = undrawn.result;
    if (!undrawn.owners.empty()) {
      sampled_.resize(undrawn.owners.size());
      {
        const TraceSpan span(trace(), kDrawnSpan, result.number);
        stage_->executable().drawn(sampled_);
      }
      mail_.clear();
      auto* own = !keeps_ids_ && !mailbox_ ? &own_mail_.emplace_back() : nullptr;
      for (size_t i = 0; i < sampled_.size(); ++i) {
        const Sampled& drawn = sampled_[i];
        const auto [slot, serial] = undrawn.owners[i];
        StepToken token{slot, serial, drawn.id, drawn.logprob, {}};
        for (int32_t k = 0; k < drawn.top_count; ++k) token.top.emplace_back(drawn.top_ids[k], drawn.top_logprobs[k]);
        result.tokens.push_back(std::move(token));
        slots_->count(slot, serial, drawn.id);
        mail_.push_back({slot, drawn.id});
        if (own) own->push_back({slot, serial, drawn.id});
        if (keeps_ids_) slots_->append(slot, serial, drawn.id);
      }
      if (!keeps_ids_ && mailbox_) {
        const TraceSpan span(trace(), kPostSpan, result.number);
        mailbox_->post(result.number, mail_);
      }
    }
    if (!leads_) return;
    result.seconds = Seconds(std::chrono::steady_clock::now() - undrawn.started).count();
    callbacks_.result(std::move(result));
  }

  WorkerSettings settings_;
  WorkerCallbacks callbacks_;
  std::mutex mutex_;  // guards queue_, stopping_, and communicator_ against abort
  std::condition_variable wake_;
  std::deque<StepBytes> queue_;
  bool stopping_ = false;
  std::atomic<bool> news_{false};  // the queue has grown or the end was asked for, since it was last looked at
  std::unique_ptr<Communicator> communicator_;

  // The rank's thread's own:
  Mesh mesh_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<PeerGroup> peers_;
  std::unique_ptr<Mailbox> mailbox_;
  std::unique_ptr<Stage> stage_;
  std::optional<Slots> slots_;
  bool leads_ = false;         // answers for the last stage
  bool keeps_ids_ = false;     // ids go from step to step on the device, the host learns of them later
  bool samples_here_ = false;
  bool needs_ids_ = false;     // the step at hand: its ids must be known before the next one is drawn
  std::deque<Undrawn> undrawn_;
  uint64_t last_step_ = 0;
  std::deque<Posted> posted_;  // steps that sampled, whose ids have not been taken yet (stage 0)
  struct Own { SlotId slot; uint32_t serial; int32_t id; };
  std::deque<std::vector<Own>> own_mail_;  // with one rank
  std::vector<int32_t> ids_, positions_, heads_;
  std::vector<SequenceRows> sequences_;
  std::vector<std::pair<SlotId, uint32_t>> owners_;  // of the rows that sample
  std::vector<SampleRow> samples_;
  std::vector<Sampled> sampled_;
  std::vector<MailItem> mail_;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace

std::unique_ptr<Worker> make_local_worker(WorkerSettings settings, WorkerCallbacks callbacks) {
  return std::make_unique<LocalWorker>(std::move(settings), std::move(callbacks));
}

}  // namespace tandem
