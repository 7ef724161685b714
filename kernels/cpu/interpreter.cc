#include "kernels/cpu/interpreter.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sample.h"

namespace tandem::cpu {

Interpreter::Interpreter(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic,
                         const Features& features, Team& team, bool poison)
    : program_(program),
      bucket_(bucket),
      arithmetic_(arithmetic),
      features_(features),
      team_(&team),
      poison_(poison),
      plan_(plan_workspace(program_, bucket_, arithmetic_, team.size())),
      hidden_(program_.hidden()) {
  sampled_.reserve(static_cast<size_t>(kMostUndrawn * bucket.heads));
  for (const KvShape& shape : kv) groups_.push_back({shape, nullptr, page_bytes(shape, bucket.page_tokens, arithmetic.kv), 0});
}

void Interpreter::bind(WeightId id, const WeightLayout& layout, const std::byte* resident) {
  if (id < 0) fail(Code::internal, "bind", "no such weight");
  if (weights_.size() <= static_cast<size_t>(id)) weights_.resize(static_cast<size_t>(id) + 1);
  weights_[static_cast<size_t>(id)] = {static_cast<const LinearKernel*>(layout.opaque), resident, layout.rows, layout.cols, layout.bytes()};
  ready_ = false;
}

void Interpreter::bind_memory(std::span<std::byte> workspace, std::span<const std::span<std::byte>> kv_groups) {
  if (workspace.size() < plan_.plan.bytes) {
    fail(Code::internal, "bind_memory",
         "a workspace of " + std::to_string(workspace.size()) + " bytes (" + std::to_string(plan_.plan.bytes) + " are needed)");
  }
  if (kv_groups.size() != groups_.size()) fail(Code::internal, "bind_memory", "not as many caches as KV groups");
  workspace_ = workspace.first(plan_.plan.bytes);
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].memory = kv_groups[g].data();
    groups_[g].pages = groups_[g].page_bytes == 0 ? 0 : kv_groups[g].size() / groups_[g].page_bytes;
  }
  ready_ = false;
}

void Interpreter::bind_peers(PeerGroup* peers) {
  peers_ = peers;
  ready_ = false;
}

const BoundWeight& Interpreter::weight(WeightId id, int64_t rows, int64_t cols) const {
  const std::string name = "w" + std::to_string(id);
  if (id < 0 || static_cast<size_t>(id) >= weights_.size() || weights_[static_cast<size_t>(id)].data == nullptr) {
    fail(Code::internal, name, "weight is not bound");
  }
  const BoundWeight& w = weights_[static_cast<size_t>(id)];
  if (w.kernel == nullptr || w.rows != rows || w.cols != cols) {
    fail(Code::internal, name,
         "bound as [" + std::to_string(w.rows) + "," + std::to_string(w.cols) + "]" + (w.kernel == nullptr ? " vector" : "") +
             ", the program reads [" + std::to_string(rows) + "," + std::to_string(cols) + "]");
  }
  return w;
}

const float* Interpreter::vector(WeightId id, int64_t width) const {
  if (id == kNoWeight) return nullptr;
  const std::string name = "w" + std::to_string(id);
  if (id < 0 || static_cast<size_t>(id) >= weights_.size() || weights_[static_cast<size_t>(id)].data == nullptr) {
    fail(Code::internal, name, "weight is not bound");
  }
  const BoundWeight& w = weights_[static_cast<size_t>(id)];
  if (w.kernel != nullptr || w.rows * w.cols != width) {
    fail(Code::internal, name, "bound as something else than a vector of " + std::to_string(width));
  }
  return w.vector();
}

BoundProduct Interpreter::product(const Product& p, bool first_only) const {
  if (p.weight == kNoWeight) return {};
  const bool biased = !first_only || peers_ == nullptr || peers_->index() == 0;
  return {&weight(p.weight, p.out, p.in), biased ? vector(p.bias, p.out) : nullptr};
}

Division Interpreter::division(const BoundProduct& one) const {
  const BoundWeight* weights[] = {one.weight};
  return divide(weights, team_->size());
}

Preparation Interpreter::preparation(std::span<const BoundProduct> readers) const {
  Preparation p;
  bool floats = false;
  for (const BoundProduct& reader : readers) {
    if (reader.weight == nullptr) continue;
    if (reader.weight->kernel->activations == Activations::int8)
      p.int8 = true;
    else
      floats = true;
  }
  const bool rounds = !arithmetic_.automatic && (arithmetic_.compute == Compute::bf16 || arithmetic_.compute == Compute::fp16);
  if (rounds && p.int8) fail(Code::internal, "bind", "a weight was laid out for other arithmetic than the program's");
  if (rounds && floats) p.rounding = arithmetic_.compute;
  return p;
}

Value Interpreter::value(Buffer values, Buffer prepared, int64_t rows, int64_t width, const Preparation& p) const {
  return make_value(buffer<std::byte>(values), buffer<std::byte>(prepared), rows, width, p);
}

void Interpreter::ready() {
  if (workspace_.data() == nullptr && plan_.plan.bytes > 0) fail(Code::internal, "forward", "no memory is bound");
  const std::vector<Record>& records = program_.records();
  bound_.assign(records.size(), {});
  const auto lcm = [](std::initializer_list<int64_t> numbers) {
    int64_t all = 32;  // so that a share is whole blocks of its reader's activations
    for (const int64_t n : numbers) all = std::lcm(all, n);
    return all;
  };

  for (size_t i = 0; i < records.size(); ++i) {
    Bound& b = bound_[i];
    if (const auto* r = std::get_if<Embed>(&records[i])) {
      b.products[0] = {&weight(r->table, r->vocab_end - r->vocab_begin, r->width()), nullptr};
      if (r->positions.table != kNoWeight) b.positions = &weight(r->positions.table, r->positions.rows, hidden_);
      b.projection = product(r->projection);
      if (b.projection.weight != nullptr) b.projection_division = division(b.projection);
    } else if (const auto* r = std::get_if<Enter>(&records[i])) {
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_);
    } else if (const auto* r = std::get_if<Normalize>(&records[i])) {
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_);
    } else if (const auto* r = std::get_if<ProjectAttention>(&records[i])) {
      b.norm = vector(r->q_norm.weight, r->shape.head_dim), b.key_norm = vector(r->k_norm.weight, r->shape.head_dim);
      b.products[0] = product(r->q), b.products[1] = product(r->k), b.products[2] = product(r->v);
      const BoundWeight* weights[] = {b.products[0].weight, b.products[1].weight, b.products[2].weight};
      b.division = divide(weights, team_->size());
      uint64_t offset = 0;
      for (const Rope* rope : plan_.ropes) {
        if (same_rope(*rope, r->rope)) b.angles = buffer<float>(Buffer::angles, offset);
        offset += sizeof(float) * static_cast<uint64_t>(bucket_.rows * rope->rotary);
      }
      if (static_cast<size_t>(r->kv.group) >= groups_.size() || r->kv.layer >= groups_[r->kv.group].shape.layers ||
          groups_[r->kv.group].shape.kv_heads != r->shape.kv_heads || groups_[r->kv.group].shape.head_dim != r->shape.head_dim) {
        fail(Code::internal, describe(records[i]), "the KV group has another shape");
      }
    } else if (const auto* r = std::get_if<ProjectMlp>(&records[i])) {
      b.products[1] = product(r->up);
      b.unit = lcm({b.products[1].weight->kernel->row_tile});
      if (r->gated) {
        b.products[0] = product(r->gate);
        b.unit = lcm({b.unit, b.products[0].weight->kernel->row_tile});
      }
    } else if (const auto* r = std::get_if<Attend>(&records[i])) {
      b.attention = attention_shape(*r, bucket_, arithmetic_.kv);
      b.fused_preparation = b.attention.group * b.attention.head_dim % 32 == 0 || r->shape.kv_heads == 1;
    } else if (const auto* r = std::get_if<Contract>(&records[i])) {
      b.products[0] = product(r->product, r->partial);
      b.division = division(b.products[0]);
    } else if (const auto* r = std::get_if<Moe>(&records[i])) {
      b.products[0] = product(r->router);
      b.unit = b.down_unit = 32;
      for (size_t e = 0; e < r->gate.size(); ++e) {
        b.gate.push_back(product(r->gate[e]));
        b.up.push_back(product(r->up[e]));
        b.down.push_back(product(r->down[e], r->partial && r->gate.size() == static_cast<size_t>(r->experts)));
        b.unit = lcm({b.unit, b.gate[e].weight->kernel->row_tile, b.up[e].weight->kernel->row_tile});
        b.down_unit = std::lcm<int64_t>(b.down_unit, b.down[e].weight->kernel->row_tile);
      }
      if (r->has_shared()) {
        b.products[1] = product(r->shared.gate), b.products[2] = product(r->shared.up);
        b.shared_down = product(r->shared.down, r->partial), b.weigh = product(r->shared.weigh);
      }
    } else if (const auto* r = std::get_if<Head>(&records[i])) {
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_);
      b.products[0] = product(r->product);
      b.division = division(b.products[0]);
      b.projection = product(r->projection);
      if (b.projection.weight != nullptr) b.projection_division = division(b.projection);
    }
  }

  // Values, each with what the products of the next record want.
  for (size_t i = 0; i < records.size(); ++i) {
    Bound& b = bound_[i];
    std::vector<BoundProduct> readers;
    if (i + 1 < records.size()) {
      const Bound& next = bound_[i + 1];
      readers.assign(next.products, next.products + 3);
      if (std::holds_alternative<Moe>(records[i + 1])) {  // the router, and what weighs a shared expert, read floats that are not rounded
        readers.push_back(next.weigh);
        const auto floats = [&](const BoundProduct& p) {
          return (p.weight == next.products[0].weight || p.weight == next.weigh.weight) && p.weight != nullptr &&
                 p.weight->kernel->activations != Activations::int8;
        };
        std::erase_if(readers, floats);
        readers.insert(readers.end(), next.gate.begin(), next.gate.end());
        readers.insert(readers.end(), next.up.begin(), next.up.end());
      } else if (std::holds_alternative<Head>(records[i + 1])) {
        readers.clear();  // it reads x
      }
    }
    const Preparation wanted = preparation(readers);
    if (i > 0) b.in = bound_[i - 1].out;
    if (const auto* r = std::get_if<Embed>(&records[i])) {
      if (b.projection.weight != nullptr)
        b.third = value(Buffer::word_rows, Buffer::word_rows_prepared, bucket_.rows, r->width(), preparation({&b.projection, 1}));
    } else if (std::holds_alternative<Enter>(records[i])) {
      b.out = value(Buffer::normalized, Buffer::normalized_prepared, bucket_.rows, hidden_, wanted);
    } else if (const auto* r = std::get_if<ProjectAttention>(&records[i])) {
      b.out = value(Buffer::queries, Buffer::queries, bucket_.rows, r->q.out, {});
    } else if (const auto* r = std::get_if<ProjectMlp>(&records[i])) {
      b.out = value(Buffer::gated, Buffer::gated_prepared, bucket_.rows, r->up.out, wanted);
    } else if (const auto* r = std::get_if<Attend>(&records[i])) {
      b.out = value(Buffer::attended, Buffer::attended_prepared, bucket_.rows, r->shape.heads * r->shape.head_dim, wanted);
    } else if (const auto* r = std::get_if<Moe>(&records[i])) {
      const int64_t pairs = static_cast<int64_t>(bucket_.rows) * std::min<int64_t>(r->top_k, static_cast<int64_t>(r->gate.size()));
      b.out = value(Buffer::expert_rows, Buffer::expert_rows_prepared, pairs, hidden_, b.in.preparation);
      b.third = value(Buffer::expert_gated, Buffer::expert_gated_prepared, pairs, r->gate[0].out, preparation(b.down));
      if (r->has_shared())
        b.shared = value(Buffer::gated, Buffer::gated_prepared, bucket_.rows, r->shared.up.out, preparation({&b.shared_down, 1}));
    } else if (const auto* r = std::get_if<Head>(&records[i])) {
      const bool projects = b.projection.weight != nullptr;
      b.in = value(Buffer::head_rows, Buffer::head_rows_prepared, bucket_.heads, hidden_,
                   preparation({projects ? &b.projection : b.products, 1}));
      if (projects)
        b.third = value(Buffer::word_rows, Buffer::word_rows_prepared, bucket_.heads, r->product.in, preparation({b.products, 1}));
    }
  }
  ready_ = true;
}

void Interpreter::check(const StepRows& step) const {
  const auto refuse = [](const std::string& what) { fail(Code::internal, "forward", what); };
  const auto of = [](int64_t value, const char* what, int64_t most) { return std::to_string(value) + what + std::to_string(most); };
  if (step.rows > bucket_.rows) refuse(of(step.rows, " rows, at most ", bucket_.rows));
  if (step.heads.size() > static_cast<size_t>(bucket_.heads)) {
    refuse(of(static_cast<int64_t>(step.heads.size()), " rows with logits, at most ", bucket_.heads));
  }
  if (program_.embeds() && step.ids == nullptr) refuse("no ids");
  if (step.positions == nullptr && step.rows > 0) refuse("no positions");
  if (!program_.embeds() && hidden_in_ == nullptr) refuse("no hidden rows come in");
  if (!program_.has_head() && hidden_out_ == nullptr) refuse("hidden rows have nowhere to go");
  for (const int32_t head : step.heads) {
    if (head < 0 || head >= step.rows) refuse(of(head, " has no logits, rows are ", step.rows));
  }
  int32_t rows = 0;
  for (const SequenceRows& s : step.sequences) {
    if (s.row != rows || s.rows <= 0) refuse("the sequences' rows do not follow one another");
    rows += s.rows;
    if (s.position < 0 || s.position + s.rows > bucket_.context)
      refuse(of(s.position + s.rows - 1, " is a position in a context of ", bucket_.context));
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].shape.layers == 0) continue;
      if (s.pages[g] == nullptr) refuse("a sequence without pages");
      for (int32_t page = s.position / bucket_.page_tokens; page <= (s.position + s.rows - 1) / bucket_.page_tokens; ++page) {
        const int32_t index = s.pages[g][page];
        if (index < 0 || static_cast<uint64_t>(index) >= groups_[g].pages)
          refuse(of(index, " is a page in a cache of ", static_cast<int64_t>(groups_[g].pages)));
      }
    }
  }
  if (rows != step.rows) refuse(of(rows, " rows in the sequences, in the step ", step.rows));
  const auto* embed = program_.records().empty() ? nullptr : std::get_if<Embed>(&program_.records().front());
  if (embed != nullptr && embed->positions.table != kNoWeight) {
    const int64_t most = embed->positions.rows - embed->positions.offset;
    for (int32_t i = 0; i < step.rows; ++i) {
      if (step.positions[i] < 0 || step.positions[i] >= most) refuse(of(step.positions[i], " is a position, learned are ", most));
    }
  }
  if (embed == nullptr || embed->partial) return;
  for (int32_t i = 0; i < step.rows; ++i) {
    if (step.ids[i] < embed->vocab_begin || step.ids[i] >= embed->vocab_end)
      refuse(of(step.ids[i], " is an id in a vocabulary of ", embed->vocab_end));
  }
}

void Interpreter::forward(const StepRows& step, const float* hidden_in, float* hidden_out) {
  if (!ready_) ready();
  hidden_in_ = hidden_in, hidden_out_ = hidden_out;
  check(step);
  step_ = step;
  if (step.rows == 0) return;
  if (poison_) poison(workspace_.data(), workspace_.size());
  team_->run([this](int member) { walk(member); });
}

void Interpreter::walk(int member) {
  begin(member);
  const std::vector<Record>& records = program_.records();
  for (size_t i = 0; i < records.size(); ++i) {
    std::visit([&](const auto& record) { run(record, bound_[i], member); }, records[i]);
    if (poison_) poison_dead(static_cast<int32_t>(i), member);
  }
}

void Interpreter::poison_dead(int32_t record, int member) {
  team_->barrier();
  if (member == 0) {
    for (size_t b = 0; b < kBuffers; ++b) {
      for (const Lifetime& life : plan_.buffers[b].lives) {
        if (life.last == record && plan_.plan.slot_of[b] >= 0) {
          const ArenaSlot& slot = plan_.plan.slots[plan_.plan.slot_of[b]];
          poison(workspace_.data() + slot.offset, slot.bytes);
        }
      }
    }
  }
  team_->barrier();
}

void Interpreter::begin(int member) {
  const auto [first, last] = part(step_.rows, member, team_->size());
  uint64_t offset = 0;
  for (const Rope* rope : plan_.ropes) {
    float* angles = buffer<float>(Buffer::angles, offset);
    for (int64_t r = first; r < last; ++r) rope_angles(*rope, step_.positions[r], angles + r * rope->rotary);
    offset += sizeof(float) * static_cast<uint64_t>(bucket_.rows * rope->rotary);
  }
  if (program_.embeds()) return;
  std::copy(hidden_in_ + first * hidden_, hidden_in_ + last * hidden_, buffer<float>(Buffer::x) + first * hidden_);
  team_->barrier();
}

void Interpreter::finish_pending(Pending pending, int member, int64_t rows) {
  if (pending != Pending::partial || peers_ == nullptr || peers_->size() == 1) return;
  if (member == 0) peers_->all_reduce(buffer<float>(Buffer::pending), static_cast<size_t>(rows * hidden_));
  team_->barrier();
}

void Interpreter::run(const Embed& r, const Bound& b, int member) {
  const auto [first, last] = part(step_.rows, member, team_->size());
  const BoundWeight& table = *b.products[0].weight;
  const bool projects = b.projection.weight != nullptr;
  float* const result = buffer<float>(r.partial ? Buffer::pending : Buffer::x);
  for (int64_t i = first; i < last; ++i) {
    float* out = projects ? b.third.row(i) : result + i * hidden_;
    const int64_t id = step_.ids[i];
    if (id < r.vocab_begin || id >= r.vocab_end) {
      std::fill_n(out, table.cols, 0.0f);
    } else {
      table.kernel->row(table.data, table.rows, table.cols, id - r.vocab_begin, out);
      if (r.scale != 1) scale_and_cap(out, table.cols, r.scale, 0);
    }
    if (projects) b.third.prepare(i, 0, table.cols, features_);
  }
  if (projects) {
    team_->barrier();
    project_rows(b, step_.rows, b.third, result, hidden_, member);
    team_->barrier();
  }
  for (int64_t i = first; i < last; ++i) {
    float* x = buffer<float>(Buffer::x) + i * hidden_;
    float* position = r.partial ? x : buffer<float>(Buffer::pending) + i * hidden_;
    if (b.positions != nullptr) {
      b.positions->kernel->row(b.positions->data, b.positions->rows, hidden_, step_.positions[i] + r.positions.offset, position);
      if (!r.partial) add(x, position, hidden_, x);
    } else if (r.partial) {
      std::fill_n(x, hidden_, 0.0f);
    }
  }
  team_->barrier();
}

// A member's share of the projection's rows.
void Interpreter::project_rows(const Bound& b, int64_t rows, const Value& in, float* out, int64_t width, int member) {
  const auto& cuts = b.projection_division.cuts[0];
  multiply(b.projection, in, 0, rows, cuts[member], cuts[member + 1], out, width);
}

void Interpreter::run(const Normalize& r, const Bound& b, int member) {
  finish_pending(r.pending, member, step_.rows);
  const auto [first, last] = part(step_.rows, member, team_->size());
  for (int64_t i = first; i < last; ++i) {
    float* pending = buffer<float>(Buffer::pending) + i * hidden_;
    add_normalize(pending, nullptr, hidden_, r.norm.kind, r.norm.epsilon, b.norm, b.norm_bias, pending);
  }
  team_->barrier();
}

void Interpreter::run(const Enter& r, const Bound& b, int member) {
  finish_pending(r.pending, member, step_.rows);
  const auto [first, last] = part(step_.rows, member, team_->size());
  for (int64_t i = first; i < last; ++i) {
    const float* pending = r.pending == Pending::none ? nullptr : buffer<float>(Buffer::pending) + i * hidden_;
    float* x = buffer<float>(Buffer::x) + i * hidden_;
    add_normalize(x, pending, hidden_, r.norm.kind, r.norm.epsilon, b.norm, b.norm_bias, b.out.row(i));
    if (r.replaces) std::copy_n(b.out.row(i), hidden_, x);
    b.out.prepare(i, 0, hidden_, features_);
  }
  team_->barrier();
}

HeadPages Interpreter::head_pages(const KvLayer& kv, const AttentionShape& shape, int64_t head, const SequenceRows& sequence) const {
  const Group& group = groups_[static_cast<size_t>(kv.group)];
  const uint64_t bytes = uint64_t{2} * shape.head_dim * shape.page_tokens * size(arithmetic_.kv);
  return {group.memory + (kv.layer * group.shape.kv_heads + head) * bytes, group.page_bytes, sequence.pages[kv.group]};
}

void Interpreter::run(const ProjectAttention& r, const Bound& b, int member) {
  float* outs[] = {b.out.values, buffer<float>(Buffer::keys), buffer<float>(Buffer::values)};
  for (int p = 0; p < 3; ++p) {
    const auto& cuts = b.division.cuts[p];
    multiply(b.products[p], b.in, 0, step_.rows, cuts[member], cuts[member + 1], outs[p], b.products[p].weight->rows);
  }
  team_->barrier();

  const int64_t kv_heads = r.shape.kv_heads, head_dim = r.shape.head_dim, group = r.shape.heads / kv_heads;
  AttentionShape shape;
  shape.head_dim = head_dim, shape.page_tokens = bucket_.page_tokens, shape.type = arithmetic_.kv;
  const auto [first, last] = part(step_.rows * kv_heads, member, team_->size());
  for (const SequenceRows& s : step_.sequences) {
    for (int64_t i = std::max<int64_t>(first, s.row * kv_heads); i < std::min<int64_t>(last, (s.row + s.rows) * kv_heads); ++i) {
      const int64_t row = i / kv_heads, head = i % kv_heads;
      float* key = outs[1] + row * kv_heads * head_dim + head * head_dim;
      const auto normalize = [&](float* x, const Norm& n, const float* weight) {
        if (weight != nullptr) add_normalize(x, nullptr, head_dim, n.kind, n.epsilon, weight, nullptr, x);
      };
      for (int64_t g = 0; g < group; ++g) normalize(b.out.row(row) + (head * group + g) * head_dim, r.q_norm, b.norm);
      normalize(key, r.k_norm, b.key_norm);
      if (r.rope.rotary > 0) {
        const float* angles = b.angles + row * r.rope.rotary;
        for (int64_t g = 0; g < group; ++g) rotate(b.out.row(row) + (head * group + g) * head_dim, r.rope.rotary, angles);
        rotate(key, r.rope.rotary, angles);
      }
      append(shape, head_pages(r.kv, shape, head, s), s.position + row - s.row, key, outs[2] + row * kv_heads * head_dim + head * head_dim);
    }
  }
  team_->barrier();
}

void Interpreter::run(const ProjectMlp& r, const Bound& b, int member) {
  const int64_t units = (b.out.width + b.unit - 1) / b.unit;
  const auto [first, last] = part(units, member, team_->size());
  const int64_t begin = first * b.unit, end = std::min(b.out.width, last * b.unit), rows = step_.rows;
  const auto product = [&](const BoundProduct& p, float* y) {
    const int64_t tile = p.weight->kernel->row_tile;
    multiply(p, b.in, 0, rows, begin / tile, (end + tile - 1) / tile, y, b.out.width);
  };
  if (begin < end) {
    float* up = r.gated ? buffer<float>(Buffer::up) : nullptr;
    product(b.products[r.gated ? 0 : 1], b.out.values);
    if (r.gated) product(b.products[1], up);
    for (int64_t i = 0; i < rows; ++i) {
      activate(r.activation, b.out.row(i) + begin, r.gated ? up + i * b.out.width + begin : nullptr, end - begin);
      b.out.prepare(i, begin, end, features_);
    }
  }
  team_->barrier();
}

void Interpreter::run(const Contract&, const Bound& b, int member) {
  const auto& cuts = b.division.cuts[0];
  multiply(b.products[0], b.in, 0, step_.rows, cuts[member], cuts[member + 1], buffer<float>(Buffer::pending), hidden_);
  team_->barrier();
}

void Interpreter::run(const Leave& r, const Bound&, int member) {
  finish_pending(r.pending, member, step_.rows);
  const auto [first, last] = part(step_.rows, member, team_->size());
  const float *x = buffer<float>(Buffer::x), *pending = buffer<float>(Buffer::pending);
  if (r.pending == Pending::none)
    std::copy(x + first * hidden_, x + last * hidden_, hidden_out_ + first * hidden_);
  else
    add(x + first * hidden_, pending + first * hidden_, (last - first) * hidden_, hidden_out_ + first * hidden_);
  team_->barrier();
}

void Interpreter::run(const Head& r, const Bound& b, int member) {
  const auto count = static_cast<int64_t>(step_.heads.size());
  if (count == 0) return;
  if (r.pending == Pending::partial) {  // only the rows asked for are summed over the peers
    float* pending = buffer<float>(Buffer::pending);
    if (member == 0) {
      for (int64_t i = 0; i < count; ++i) std::copy_n(pending + step_.heads[i] * hidden_, hidden_, pending + i * hidden_);
    }
    finish_pending(r.pending, member, count);
    if (peers_ == nullptr || peers_->size() == 1) team_->barrier();
  }
  const auto [first, last] = part(count, member, team_->size());
  for (int64_t i = first; i < last; ++i) {
    const float* pending = buffer<float>(Buffer::pending) + (r.pending == Pending::partial ? i : step_.heads[i]) * hidden_;
    const float* x = buffer<float>(Buffer::x) + step_.heads[i] * hidden_;
    if (r.pending == Pending::none)
      std::copy_n(x, hidden_, b.in.row(i));
    else
      add(x, pending, hidden_, b.in.row(i));
    add_normalize(b.in.row(i), nullptr, hidden_, r.norm.kind, r.norm.epsilon, b.norm, b.norm_bias, b.in.row(i));
    b.in.prepare(i, 0, hidden_, features_);
  }
  team_->barrier();
  if (b.projection.weight != nullptr) {
    project_rows(b, count, b.in, b.third.values, b.third.width, member);
    team_->barrier();
    for (int64_t i = first; i < last; ++i) b.third.prepare(i, 0, b.third.width, features_);
    team_->barrier();
  }

  const bool split = !r.parts.empty() && peers_ != nullptr && peers_->size() > 1;
  const int64_t width = r.product.out, tile = b.products[0].weight->kernel->row_tile;
  float* logits = buffer<float>(Buffer::logits);
  float* mine = split ? buffer<float>(Buffer::logits_part) : logits;
  const auto& cuts = b.division.cuts[0];
  multiply(b.products[0], b.projection.weight != nullptr ? b.third : b.in, 0, count, cuts[member], cuts[member + 1], mine, width);
  const int64_t begin = cuts[member] * tile, end = std::min(width, cuts[member + 1] * tile);
  if (r.scale != 1 || r.soft_cap != 0) {
    for (int64_t i = 0; i < count; ++i) scale_and_cap(mine + i * width + begin, end - begin, r.scale, r.soft_cap);
  }
  team_->barrier();
  if (!split) return;

  float* gathered = count == 1 ? logits : mine + count * width;  // [members][count, part]
  if (member == 0) {
    size_t counts[64];
    for (size_t i = 0; i < r.parts.size(); ++i) counts[i] = static_cast<size_t>(count * r.parts[i]);
    peers_->all_gather(mine, {counts, r.parts.size()}, gathered);
  }
  team_->barrier();
  if (count == 1) return;
  for (int64_t i = first; i < last; ++i) {
    int64_t before = 0;
    for (const int64_t part : r.parts) {
      std::copy_n(gathered + count * before + i * part, part, logits + i * r.vocab + before);
      before += part;
    }
  }
  team_->barrier();
}

void Interpreter::run(const Sample&, const Bound&, int) {}  // sample() does it, when the scheduler has its parameters

void Interpreter::sample(std::span<const SampleRow> rows) {
  if (plan_.plan.slot_of[static_cast<size_t>(Buffer::sampling)] < 0 || !ready_)
    fail(Code::internal, "sample", "the program does not sample");
  for (const SampleRow& row : rows) {
    if (row.head < 0 || static_cast<size_t>(row.head) >= step_.heads.size() || row.sampling == nullptr) {
      fail(Code::internal, "sample", "row " + std::to_string(row.head) + " has no logits");
    }
  }
  sample_rows_ = rows;
  sampled_.resize(sampled_.size() + rows.size());
  drawing_ = std::span(sampled_).last(rows.size());
  const auto work = [this](int member) {  // small enough to be handed on without an allocation
    const int members = std::min(team_->size(), bucket_.heads);
    if (member >= members) return;
    auto* scratch = buffer<std::byte>(Buffer::sampling, member * sample_scratch_bytes(program_.vocab()));
    const auto [first, last] = part(static_cast<int64_t>(sample_rows_.size()), member, members);
    for (int64_t i = first; i < last; ++i) {
      const SampleRow& row = sample_rows_[i];
      drawing_[static_cast<size_t>(i)] = sample_row(logits() + row.head * program_.vocab(), program_.vocab(), row, scratch);
    }
  };
  try {
    if (rows.size() > 1) {
      team_->run(work);
    } else if (!rows.empty()) {
      drawing_[0] = sample_row(logits() + rows[0].head * program_.vocab(), program_.vocab(), rows[0], buffer<std::byte>(Buffer::sampling));
    }
  } catch (...) {
    sampled_.resize(sampled_.size() - rows.size());
    throw;
  }
}

void Interpreter::drawn(std::span<Sampled> out) {
  if (out.size() > sampled_.size()) fail(Code::internal, "drawn", "asks for more than was drawn");
  const auto end = sampled_.begin() + static_cast<std::ptrdiff_t>(out.size());
  std::copy(sampled_.begin(), end, out.begin());
  sampled_.erase(sampled_.begin(), end);
}

const float* Interpreter::logits() { return buffer<const float>(Buffer::logits); }

void Interpreter::copy_pages(int32_t group, std::span<const std::pair<int32_t, int32_t>> from_to) {
  if (group < 0 || static_cast<size_t>(group) >= groups_.size()) fail(Code::internal, "copy_pages", "no such KV group");
  const Group& g = groups_[static_cast<size_t>(group)];
  for (const auto& [from, to] : from_to) {
    if (from < 0 || to < 0 || static_cast<uint64_t>(from) >= g.pages || static_cast<uint64_t>(to) >= g.pages) {
      fail(Code::internal, "copy_pages", "page " + std::to_string(std::max(from, to)) + " of a cache of " + std::to_string(g.pages));
    }
    if (from != to) std::memcpy(g.memory + to * g.page_bytes, g.memory + from * g.page_bytes, g.page_bytes);
  }
}

}  // namespace tandem::cpu
