// Token ids from the last stage to the first, without the coordinator: the leader of the last stage posts, every rank of stage 0
// waits. Two-deep per group of sequences. Owned by its rank's thread.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sharding/comm/communicator.h"
#include "sharding/mesh.h"

namespace tandem {

struct MailItem { int32_t slot = 0, id = 0; };

class Mailbox {
 public:
  virtual ~Mailbox() = default;
  virtual void post(uint64_t step, std::span<const MailItem> items) = 0;
  // What was sampled in `step`. Steps are asked for in the order in which they were posted; every posted step is asked for once.
  virtual std::vector<MailItem> wait(uint64_t step) = 0;
  virtual bool ready() = 0;  // a posted step has arrived and was not asked for yet: wait() for it would not block
};

// Over messages: between processes, hosts or threads. Every member of the last stage may post, the leader's counts. The leader's own
// mail (with one stage) is a local queue; a lone rank sends nothing.
std::unique_ptr<Mailbox> make_mailbox(Communicator& communicator, const Mesh& mesh);

}  // namespace tandem
