#include "runtime/model/stage.h"

#include "kernels/base/error.h"

namespace tandem {
Stage::Stage(const Blueprint& blueprint, const Plan& plan, int rank, bool all_logits, Backend& backend, PeerGroup* peers,
             const LoadListener& progress)
    : backend_(backend), hidden_(blueprint.model->shape.hidden), vocab_(blueprint.model->shape.vocab) {
  const PlanStage& planned = plan.stages.at(static_cast<size_t>(plan.mesh.stage(rank)));
  range_ = {planned.first_layer, planned.last_layer, planned.embedding, planned.head};
  const int member = plan.mesh.member(rank);
  const Slicer slicer(blueprint.model->weights, blueprint.formats.held, {1, plan.mesh.ep, plan.mesh.tp});
  bucket_ = bucket_for(plan.workload, all_logits);
  const Program program = record_stage(*blueprint.model, slicer, range_, member, plan.workload.context);
  const std::vector<KvShape> kv = kv_shapes(*blueprint.model, slicer, range_, member);
  executable_ = backend.compile(program, kv, bucket_, blueprint.arithmetic);

  // The plan's number holds for any stage; this stage's own can only be smaller, and what the plan says is what is taken.
  uint64_t workspace = 0;
  for (const SizeRow& row : backend.workspace(program, kv, bucket_, blueprint.arithmetic)) workspace += row.bytes;
  const uint64_t planned_workspace = plan.devices.at(static_cast<size_t>(rank)).workspace_bytes;
  if (workspace > planned_workspace) {
    bad_input("plan", "gives rank " + std::to_string(rank) + " " + std::to_string(planned_workspace) + " bytes of workspace (it needs " + std::to_string(workspace) + ")");
  }
  try {
    workspace_ = take("workspace", planned_workspace);
    const uint64_t buffer = static_cast<uint64_t>(bucket_.rows) * static_cast<uint64_t>(hidden_) * sizeof(float);
    communication_ = take("communication", 2 * buffer);
    incoming_ = reinterpret_cast<float*>(communication_.memory);
    outgoing_ = incoming_ + buffer / sizeof(float);
    std::vector<std::span<std::byte>> groups;
    for (size_t group = 0; group < kv.size(); ++group) {
      const uint64_t page = page_bytes(kv[group], bucket_.page_tokens, blueprint.arithmetic.kv);
      kv_.push_back(take("kv", page * static_cast<uint64_t>(plan.kv_pages.at(group))));
      groups.emplace_back(kv_.back().memory, kv_.back().bytes);
    }
    executable_->bind_memory({workspace_.memory, workspace_.bytes}, groups);
    executable_->bind_peers(peers);
    load(blueprint, slicer, member, progress);
    executable_->prepare(range_.embedding ? nullptr : incoming_, range_.head ? nullptr : outgoing_);
  } catch (...) {
    executable_.reset();
    for (Block& block : kv_) backend_.release(block.memory, block.bytes);
    for (Block* block : {&weights_, &workspace_, &communication_}) {
      if (block->memory) backend_.release(block->memory, block->bytes);
    }
    throw;
  }
}

Stage::~Stage() {
  executable_.reset();
  for (Block& block : kv_) backend_.release(block.memory, block.bytes);
  for (Block* block : {&weights_, &workspace_, &communication_}) {
    if (block->memory) backend_.release(block->memory, block->bytes);
  }
}

Stage::Block Stage::take(const char* name, uint64_t bytes) {
  Block block{nullptr, bytes};
  if (bytes > 0) {
    try {
      block.memory = backend_.allocate(bytes);
    } catch (const Error& error) {
      fail(error.code, name, "does not fit: " + error.message);
    }
  }
  allocated_.push_back({name, bytes});
  return block;
}

void Stage::load(const Blueprint& blueprint, const Slicer& slicer, int member, const LoadListener& progress) {
  struct Item { HeldWeight held; WeightLayout layout; Rectangle part; uint64_t offset; };
  std::vector<Item> items;
  uint64_t offset = 0;
  LoadProgress done;
  for (const HeldWeight& held : held_weights(*blueprint.model, slicer, range_, member)) {
    Item item{held, {}, slicer.part(held.id, member), offset};
    item.layout = backend_.layout(*blueprint.formats.held[held.id], item.part.rows(), item.part.cols(), held.use, blueprint.arithmetic);
    offset += held_bytes(item.layout).sum();
    done.total_bytes += stored_bytes(*blueprint.formats.stored[held.id], item.part.rows(), item.part.cols());
    items.push_back(std::move(item));
  }
  weights_ = take("weights", offset);
  LoadedSlice slice;
  for (const Item& item : items) {
    slice = load_slice(blueprint, item.held.id, item.part, std::move(slice.bytes));
    std::byte* destination = weights_.memory + item.offset;
    backend_.place(item.layout, slice.view, destination);
    executable_->bind(item.held.id, item.layout, destination);
    done.done_bytes += stored_bytes(*blueprint.formats.stored[item.held.id], item.part.rows(), item.part.cols());
    if (progress) progress(done);
  }
}

}  // namespace tandem
