#include "sharding/comm/mailbox.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <string>

#include "kernels/base/error.h"

namespace tandem {
namespace {

// Messages have a known length, so the first one is always of this size and holds what most steps need; the rest follows in a second.
constexpr size_t kFirstItems = 30;
struct FirstMessage {
  uint64_t step = 0, count = 0;
  MailItem items[kFirstItems];
};
static_assert(sizeof(FirstMessage) == 256);

class MessageMailbox final : public Mailbox {
 public:
  MessageMailbox(Communicator& communicator, const Mesh& mesh)
      : communicator_(communicator),
        leader_((mesh.pp - 1) * mesh.group_size()),
        readers_(mesh.stage_ranks(0)),
        own_(std::find(readers_.begin(), readers_.end(), leader_) != readers_.end()) {}

  void post(uint64_t step, std::span<const MailItem> items) override {
    if (communicator_.rank() != leader_) return;  // members of a stage draw the same ids: the leader's count
    if (own_) local_.push_back({step, {items.begin(), items.end()}});
    FirstMessage first;
    first.step = step, first.count = items.size();
    const size_t head = std::min(items.size(), kFirstItems);
    std::copy_n(items.begin(), head, first.items);
    for (const int reader : readers_) {
      if (reader == leader_) continue;
      communicator_.send(reader, kMailboxChannel, &first, sizeof first);
      if (items.size() > head) communicator_.send(reader, kMailboxChannel, items.data() + head, (items.size() - head) * sizeof(MailItem));
    }
  }

  std::vector<MailItem> wait(uint64_t step) override {
    Letter letter;
    if (communicator_.rank() == leader_) {
      if (local_.empty()) fail(Code::internal, "mailbox", "step " + std::to_string(step) + " was not posted");
      letter = std::move(local_.front());
      local_.pop_front();
    } else {
      FirstMessage first;
      communicator_.receive(leader_, kMailboxChannel, &first, sizeof first);
      letter.step = first.step;
      const size_t head = std::min<size_t>(first.count, kFirstItems);
      letter.items.resize(first.count);
      std::copy_n(first.items, head, letter.items.begin());
      if (first.count > head) {
        communicator_.receive(leader_, kMailboxChannel, letter.items.data() + head, (first.count - head) * sizeof(MailItem));
      }
    }
    if (letter.step != step) {
      fail(Code::internal, "mailbox", "step " + std::to_string(letter.step) + " came where " + std::to_string(step) + " was asked for");
    }
    return std::move(letter.items);
  }

  bool ready() override { return communicator_.rank() == leader_ ? !local_.empty() : communicator_.arrived(leader_, kMailboxChannel); }

 private:
  struct Letter {
    uint64_t step = 0;
    std::vector<MailItem> items;
  };
  Communicator& communicator_;
  int leader_;
  std::vector<int> readers_;
  bool own_;  // the leader reads its own mail
  std::deque<Letter> local_;
};

}  // namespace

std::unique_ptr<Mailbox> make_mailbox(Communicator& communicator, const Mesh& mesh) {
  return std::make_unique<MessageMailbox>(communicator, mesh);
}

}  // namespace tandem
