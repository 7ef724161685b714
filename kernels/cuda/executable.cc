#include "kernels/cuda/executable.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace tandem::cuda {
namespace {

static_assert(sizeof(SequenceOnDevice) == 16 + sizeof(int32_t) * kMaxKvGroups, "what input_layout() counts with");
constexpr size_t kInputBlocks = 4;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows that a graph is captured for: a step takes the next larger one.
int32_t row_bucket(int32_t rows) { return rows <= 8 ? rows : static_cast<int32_t>(round_up(rows, 8)); }
int32_t context_bucket(int32_t longest, int32_t most) {
  int32_t bucket = 1024;
  while (bucket < longest) bucket *= 4;
  return std::min(bucket, std::max(most, 1));
}

}  // namespace

CudaExecutable::CudaExecutable(const Program& program, std::span<const KvShape> kv, const Bucket& bucket, const Arithmetic& arithmetic,
                               const DeviceInfo& device, cudaStream_t stream, std::shared_ptr<const std::function<void()>> watch)
    : program_(program),
      bucket_(bucket),
      arithmetic_(arithmetic),
      element_(element_of(arithmetic.compute)),
      device_(device),
      stream_(stream),
      watch_(std::move(watch)),
      plan_(plan_workspace(program_, bucket_, arithmetic_)),
      hidden_(program_.hidden()) {
  for (const KvShape& shape : kv) groups_.push_back({shape, nullptr, page_bytes(shape, bucket.page_tokens, arithmetic.kv), 0});
  inputs_.reserve(kInputBlocks, input_layout(bucket.rows, bucket.sequences, bucket.heads, most_page_entries(bucket)).bytes);
  if (program_.has_head()) {
    sample_inputs_.reserve(kInputBlocks, plan_.buffers[static_cast<size_t>(Buffer::sample_inputs)].bytes);
    results_.reserve(kMostUndrawn + 1, sizeof(Sampled) * static_cast<size_t>(bucket.sequences));
  }
}

CudaExecutable::~CudaExecutable() {
  cudaStreamSynchronize(stream_);
  for (auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
}

void CudaExecutable::bind(WeightId id, const WeightLayout& layout, const std::byte* resident_bytes) {
  if (id < 0) fail(Code::internal, "bind", "no such weight");
  if (weights_.size() <= static_cast<size_t>(id)) weights_.resize(static_cast<size_t>(id) + 1);
  weights_[static_cast<size_t>(id)] = {&resident(layout), layout.format, resident_bytes, layout.rows, layout.cols};
  ready_ = false;
}

void CudaExecutable::bind_memory(std::span<std::byte> workspace, std::span<const std::span<std::byte>> kv_groups) {
  if (workspace.size() < plan_.plan.bytes) {
    fail(Code::internal, "bind_memory",
         "a workspace of " + std::to_string(workspace.size()) + " bytes (" + std::to_string(plan_.plan.bytes) + " are needed)");
  }
  if (kv_groups.size() != groups_.size()) fail(Code::internal, "bind_memory", "not as many caches as KV groups");
  workspace_ = workspace.first(plan_.plan.bytes);
  check(cudaMemsetAsync(workspace_.data(), 0, workspace_.size(), stream_), "workspace");  // counters begin at zero
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].memory = kv_groups[g].data();
    groups_[g].pages = groups_[g].page_bytes == 0 ? 0 : kv_groups[g].size() / groups_[g].page_bytes;
  }
  ready_ = false;
}

void CudaExecutable::bind_peers(PeerGroup* peers) {
  peers_ = dynamic_cast<DevicePeers*>(peers);
  if (peers != nullptr && peers_ == nullptr) fail(Code::internal, "bind_peers", "these peers do not share device memory");
  ready_ = false;
}

const Weight& CudaExecutable::weight(WeightId id, int64_t rows, int64_t cols) const {
  const std::string name = "w" + std::to_string(id);
  if (id < 0 || static_cast<size_t>(id) >= weights_.size() || weights_[static_cast<size_t>(id)].data == nullptr) {
    fail(Code::internal, name, "weight is not bound");
  }
  const Weight& w = weights_[static_cast<size_t>(id)];
  if (w.resident->kind == Kind::vector || w.rows != rows || w.cols != cols) {
    fail(Code::internal, name,
         "bound as [" + std::to_string(w.rows) + "," + std::to_string(w.cols) + "] " + std::string(w.resident->name) + ", the program reads [" +
             std::to_string(rows) + "," + std::to_string(cols) + "]");
  }
  return w;
}

const float* CudaExecutable::vector(WeightId id, int64_t width) const {
  if (id == kNoWeight) return nullptr;
  const std::string name = "w" + std::to_string(id);
  if (id < 0 || static_cast<size_t>(id) >= weights_.size() || weights_[static_cast<size_t>(id)].data == nullptr) {
    fail(Code::internal, name, "weight is not bound");
  }
  const Weight& w = weights_[static_cast<size_t>(id)];
  if (w.resident->kind != Kind::vector || w.rows * w.cols != width) {
    fail(Code::internal, name, "bound as something else than a vector of " + std::to_string(width));
  }
  return reinterpret_cast<const float*>(w.data);
}

BoundProduct CudaExecutable::product(const Product& p, bool first_only) const {
  if (p.weight == kNoWeight) return {};
  const bool biased = !first_only || peers_ == nullptr || peers_->index() == 0;
  return {weight(p.weight, p.out, p.in), biased ? vector(p.bias, p.out) : nullptr};
}

// Whether a record's products take the norm before them on their way: those with 4-bit tiles do.
bool CudaExecutable::takes_norm(const Record& record) const {
  const auto tiles = [this](const Product& p) { return weight(p.weight, p.out, p.in).resident->kind == Kind::tile4; };
  if (const auto* r = std::get_if<ProjectAttention>(&record)) return tiles(r->q) && tiles(r->k) && tiles(r->v);
  if (const auto* r = std::get_if<ProjectMlp>(&record)) return tiles(r->up) && (!r->gated || tiles(r->gate));
  return false;
}

void CudaExecutable::resolve() {
  if (workspace_.data() == nullptr) fail(Code::internal, "forward", "no memory is bound");
  const std::vector<Record>& records = program_.records();
  bound_.assign(records.size(), {});
  std::vector<std::byte> constants;
  const auto constant = [&](const void* data, size_t bytes) {
    const size_t at = (constants.size() + 255) / 256 * 256;
    constants.resize(at + bytes);
    std::memcpy(constants.data() + at, data, bytes);
    return buffer<std::byte>(Buffer::constants) + at;
  };
  for (size_t i = 0; i < records.size(); ++i) {
    Bound& b = bound_[i];
    if (const auto* r = std::get_if<Embed>(&records[i])) {
      b.products[0] = {weight(r->table, r->vocab_end - r->vocab_begin, r->width()), nullptr};
      if (r->positions.table != kNoWeight) b.positions = weight(r->positions.table, r->positions.rows, hidden_);
      for (const Weight* table : {&b.products[0].weight, &b.positions}) {
        if (table->data != nullptr && table->resident->kind != Kind::dense) fail(Code::internal, describe(records[i]), "the table is not dense");
      }
      b.projection = product(r->projection);
    } else if (const auto* r = std::get_if<Enter>(&records[i])) {
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_), b.epsilon = r->norm.epsilon;
      const bool takes = i + 1 < records.size() && takes_norm(records[i + 1]);
      const bool rms = r->norm.kind == NormKind::rms && b.norm_bias == nullptr && !r->replaces;
      b.left_to_next = takes && rms;
      const auto* mixture = i + 1 < records.size() ? std::get_if<Moe>(&records[i + 1]) : nullptr;
      b.left_to_mixture = mixture != nullptr && rms && b.norm != nullptr && enters_mixture(element_, hidden_, mixture->experts) &&
                          weight(mixture->router.weight, mixture->experts, hidden_).resident->kind == Kind::dense;
    } else if (const auto* r = std::get_if<Normalize>(&records[i])) {
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_), b.epsilon = r->norm.epsilon;
      for (const size_t beside : {i - 1, i + 1}) {  // who made the result, and who takes it
        if (beside < records.size()) bound_[beside].stays_pending = true;
      }
    } else if (const auto* r = std::get_if<ProjectAttention>(&records[i])) {
      b.products[0] = product(r->q), b.products[1] = product(r->k), b.products[2] = product(r->v);
      b.head_norm = vector(r->q_norm.weight, r->shape.head_dim), b.key_norm = vector(r->k_norm.weight, r->shape.head_dim);
      if (r->rope.rotary > 0) {
        const std::vector<float>& inverse = r->rope.inverse_frequency;
        b.rope = {reinterpret_cast<const float*>(constant(inverse.data(), inverse.size() * sizeof(float))), static_cast<int32_t>(r->rope.rotary), r->rope.scale};
      }
      if (static_cast<size_t>(r->kv.group) >= groups_.size() || r->kv.layer >= groups_[static_cast<size_t>(r->kv.group)].shape.layers ||
          groups_[static_cast<size_t>(r->kv.group)].shape.kv_heads != r->shape.kv_heads ||
          groups_[static_cast<size_t>(r->kv.group)].shape.head_dim != r->shape.head_dim) {
        fail(Code::internal, describe(records[i]), "the KV group has another shape");
      }
    } else if (const auto* r = std::get_if<ProjectMlp>(&records[i])) {
      if (r->gated) b.products[0] = product(r->gate);
      b.products[r->gated ? 1 : 0] = product(r->up);
    } else if (const auto* r = std::get_if<Contract>(&records[i])) {
      b.products[0] = product(r->product, r->partial);
      b.in = i > 0 && std::holds_alternative<Attend>(records[i - 1]) ? Buffer::attended : Buffer::gated;
    } else if (const auto* r = std::get_if<Moe>(&records[i])) {
      b.products[0] = product(r->router);
      std::vector<Weight>* lists[] = {&b.gate, &b.up, &b.down};
      const std::vector<Product>* products[] = {&r->gate, &r->up, &r->down};
      for (int p = 0; p < 3; ++p) {
        std::vector<const std::byte*> data;
        for (const Product& one : *products[p]) {
          if (one.bias != kNoWeight) fail(Code::internal, describe(records[i]), "experts with biases do not run on GPUs");
          lists[p]->push_back(weight(one.weight, one.out, one.in));
          data.push_back(lists[p]->back().data);
          if (lists[p]->back().resident != lists[p]->front().resident) fail(Code::internal, describe(records[i]), "experts are kept in different layouts");
        }
        b.experts[p] = reinterpret_cast<const std::byte* const*>(constant(data.data(), data.size() * sizeof(data[0])));
      }
      if (b.down.front().resident->kind != b.gate.front().resident->kind) {
        fail(Code::failed_precondition, "--device",
             "cannot be cuda: experts of " + std::to_string(r->gate[0].out) + " columns in " + std::string(b.gate.front().format->name()) +
                 " (a multiple of 64, or another --format)");
      }
      if (r->has_shared()) {
        b.shared[0] = product(r->shared.gate), b.shared[1] = product(r->shared.up);
        b.shared_down = product(r->shared.down, r->partial), b.weigh = product(r->shared.weigh);
      }
    } else if (const auto* r = std::get_if<Head>(&records[i])) {
      b.projection = product(r->projection);
      b.norm = vector(r->norm.weight, hidden_), b.norm_bias = vector(r->norm.bias, hidden_), b.epsilon = r->norm.epsilon;
      b.products[0] = product(r->product);
      b.fused_norm = r->norm.kind == NormKind::rms && b.norm_bias == nullptr && b.products[0].weight.resident->kind == Kind::tile4 && r->projection.weight == kNoWeight;
    }
    if (std::holds_alternative<Attend>(records[i])) b.rope = bound_[i - 1].rope;
    if (i > 0 && (bound_[i - 1].left_to_next || bound_[i - 1].left_to_mixture)) {
      (bound_[i - 1].left_to_next ? b.fused_norm : b.enters) = true;
      b.norm = bound_[i - 1].norm, b.epsilon = bound_[i - 1].epsilon;
    }
  }
  if (constants.size() > plan_.buffers[static_cast<size_t>(Buffer::constants)].bytes) fail(Code::internal, "constants", "are more than was planned");
  check(cudaMemcpyAsync(buffer<std::byte>(Buffer::constants), constants.data(), constants.size(), cudaMemcpyHostToDevice, stream_), "constants");
  check(cudaStreamSynchronize(stream_), "constants");
  if (gemm_ == nullptr && bucket_.rows > kFewRows) gemm_ = std::make_unique<Gemm>(stream_, buffer<std::byte>(Buffer::gemm), kGemmWorkspaceBytes);
  for (auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
  ready_ = true;
}

// Graphs of all sizes, and the matrix library opened and its kernels loaded: a step in which that happened would last a quarter of a second.
void CudaExecutable::prepare(const float* hidden_in, float* hidden_out) {
  if (!ready_) resolve();
  use_buffers(hidden_in, hidden_out);
  for (int32_t rows = 1; rows <= std::min<int64_t>(bucket_.sequences, kFewRows); rows = row_bucket(rows + 1)) {
    graph_for(rows, context_bucket(1, bucket_.context));
  }
  if (bucket_.rows > kFewRows) {
    const InputLayout layout = input_layout(bucket_.rows, bucket_.sequences, bucket_.heads, 1);
    check(cudaMemsetAsync(buffer<std::byte>(Buffer::inputs), 0, layout.bytes, stream_), "step inputs");
    walk(pass_over(layout, bucket_.rows, std::min(bucket_.heads, bucket_.sequences), bucket_.sequences, 1, false));
  }
  check(cudaStreamSynchronize(stream_), "first pass");
}

// Graphs hold the addresses of the rows that come and go.
void CudaExecutable::use_buffers(const float* hidden_in, float* hidden_out) {
  if (hidden_in == hidden_in_ && hidden_out == hidden_out_) return;
  for (auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
  hidden_in_ = const_cast<float*>(hidden_in), hidden_out_ = hidden_out;
}

void CudaExecutable::check_step(const StepRows& step) const {
  const auto refuse = [](const std::string& what) { fail(Code::internal, "forward", what); };
  const auto of = [](int64_t value, const char* what, int64_t most) { return std::to_string(value) + what + std::to_string(most); };
  if (step.rows > bucket_.rows) refuse(of(step.rows, " rows, at most ", bucket_.rows));
  if (step.heads.size() > static_cast<size_t>(bucket_.heads)) refuse(of(static_cast<int64_t>(step.heads.size()), " rows with logits, at most ", bucket_.heads));
  if (step.sequences.size() > static_cast<size_t>(bucket_.sequences)) refuse(of(static_cast<int64_t>(step.sequences.size()), " sequences, at most ", bucket_.sequences));
  if (program_.embeds() && step.ids == nullptr) refuse("no ids");
  if (step.positions == nullptr && step.rows > 0) refuse("no positions");
  for (const int32_t head : step.heads) {
    if (head < 0 || head >= step.rows) refuse(of(head, " has no logits, rows are ", step.rows));
  }
  int32_t rows = 0;
  for (const SequenceRows& s : step.sequences) {
    if (s.row != rows || s.rows <= 0) refuse("the sequences' rows do not follow one another");
    if (s.slot < 0 || s.slot >= bucket_.sequences) refuse(of(s.slot, " is a slot, there are ", bucket_.sequences));
    rows += s.rows;
    if (s.position < 0 || s.position + s.rows > bucket_.context) refuse(of(s.position + s.rows - 1, " is a position in a context of ", bucket_.context));
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].shape.layers == 0) continue;
      if (s.pages[g] == nullptr) refuse("a sequence without pages");
      for (int32_t page = s.position / bucket_.page_tokens; page <= (s.position + s.rows - 1) / bucket_.page_tokens; ++page) {
        const int32_t index = s.pages[g][page];
        if (index < 0 || static_cast<uint64_t>(index) >= groups_[g].pages) refuse(of(index, " is a page in a cache of ", static_cast<int64_t>(groups_[g].pages)));
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
    if (step.ids[i] != kDrawnId && (step.ids[i] < embed->vocab_begin || step.ids[i] >= embed->vocab_end)) {
      refuse(of(step.ids[i], " is an id in a vocabulary of ", embed->vocab_end));
    }
  }
}

void CudaExecutable::send_inputs(const StepRows& step, const InputLayout& layout) {
  std::byte* host = inputs_.take();
  const auto ints = [host](uint64_t offset) { return reinterpret_cast<int32_t*>(host + offset); };
  int32_t decoding = 0;
  for (const SequenceRows& s : step.sequences) {
    if (s.rows != 1) break;
    ++decoding;
  }
  const int32_t counts[8] = {step.rows, static_cast<int32_t>(step.sequences.size()), static_cast<int32_t>(step.heads.size()), decoding};
  std::memcpy(host + layout.counts, counts, sizeof counts);
  auto* sequences = reinterpret_cast<SequenceOnDevice*>(host + layout.sequences);
  int32_t *sequence_of = ints(layout.sequence_of), *pages = ints(layout.pages);
  int32_t entry = 0;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceRows& s = step.sequences[i];
    SequenceOnDevice& on = sequences[i];
    on = {s.slot, s.row, s.rows, s.position, {}};
    const int32_t entries = (s.position + s.rows - 1) / bucket_.page_tokens + 1;
    for (size_t g = 0; g < groups_.size(); ++g) {
      on.pages[g] = entry;
      if (groups_[g].shape.layers == 0) continue;
      std::memcpy(pages + entry, s.pages[g], sizeof(int32_t) * static_cast<size_t>(entries));
      entry += entries;
    }
    std::fill_n(sequence_of + s.row, s.rows, static_cast<int32_t>(i));
  }
  std::memcpy(ints(layout.positions), step.positions, sizeof(int32_t) * static_cast<size_t>(step.rows));
  if (step.ids) std::memcpy(ints(layout.ids), step.ids, sizeof(int32_t) * static_cast<size_t>(step.rows));
  const size_t room = (layout.pages - layout.heads) / sizeof(int32_t);
  std::fill_n(ints(layout.heads), room, 0);  // a graph reads past the heads there are
  if (!step.heads.empty()) std::memcpy(ints(layout.heads), step.heads.data(), step.heads.size_bytes());
  const uint64_t bytes = layout.pages + sizeof(int32_t) * static_cast<uint64_t>(entry);
  check(cudaMemcpyAsync(buffer<std::byte>(Buffer::inputs), host, bytes, cudaMemcpyHostToDevice, stream_), "step inputs");
  inputs_.sent(stream_);
}

CudaExecutable::Pass CudaExecutable::pass_over(const InputLayout& layout, int64_t rows, int64_t heads, int32_t sequences, int32_t context,
                                               bool decode) const {
  const auto* inputs = buffer<std::byte>(Buffer::inputs);
  const auto ints = [inputs](uint64_t offset) { return reinterpret_cast<const int32_t*>(inputs + offset); };
  Pass pass;
  pass.how = {stream_, &device_, true};
  pass.rows = rows, pass.heads = heads, pass.sequences = sequences, pass.context = context, pass.decode = decode;
  pass.view = {ints(layout.counts), reinterpret_cast<const SequenceOnDevice*>(inputs + layout.sequences), ints(layout.positions),
               ints(layout.sequence_of), ints(layout.pages)};
  pass.ids = ints(layout.ids);
  pass.head_rows = ints(layout.heads);
  pass.x = buffer<float>(Buffer::x);
  pass.hidden_in = hidden_in_;
  pass.hidden_out = hidden_out_;
  return pass;
}

void CudaExecutable::forward(const StepRows& step, const float* hidden_in, float* hidden_out) {
  if (!ready_) resolve();
  if (!program_.embeds() && hidden_in == nullptr) fail(Code::internal, "forward", "no hidden rows come in");
  if (!program_.has_head() && hidden_out == nullptr) fail(Code::internal, "forward", "hidden rows have nowhere to go");
  check_step(step);
  use_buffers(hidden_in, hidden_out);
  heads_ = static_cast<int32_t>(step.heads.size());
  if (step.rows == 0) return;
  int32_t longest = 0;
  bool decode = step.rows <= kFewRows;
  for (const SequenceRows& s : step.sequences) {
    longest = std::max(longest, s.position + s.rows);
    decode &= s.rows == 1;
  }
  if (decode && step.heads.size() <= static_cast<size_t>(step.rows)) return replay(step, longest);
  const InputLayout layout = input_layout(step.rows, static_cast<int64_t>(step.sequences.size()), static_cast<int64_t>(step.heads.size()), 0);
  send_inputs(step, layout);
  Pass pass = pass_over(layout, step.rows, static_cast<int64_t>(step.heads.size()), static_cast<int32_t>(step.sequences.size()), longest, decode);
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    if (step.sequences[i].rows == 1) pass.singles = static_cast<int32_t>(i) + 1;
  }
  walk(pass);
}

void CudaExecutable::replay(const StepRows& step, int32_t longest) {
  const int32_t rows = std::min(row_bucket(step.rows), std::max(step.rows, bucket_.sequences));
  cudaGraphExec_t graph = graph_for(rows, context_bucket(longest, bucket_.context));
  send_inputs(step, input_layout(rows, rows, rows, 0));
  check(cudaGraphLaunch(graph, stream_), "decode step");
}

cudaGraphExec_t CudaExecutable::graph_for(int32_t rows, int32_t context) {
  if (const auto found = graphs_.find({rows, context}); found != graphs_.end()) return found->second;
  const InputLayout layout = input_layout(rows, rows, rows, 0);
  const Pass pass = pass_over(layout, rows, rows, rows, context, true);
  // Once without capture, over no sequences: kernels are loaded now, which a capture does not allow.
  check(cudaMemsetAsync(buffer<std::byte>(Buffer::inputs), 0, layout.bytes, stream_), "step inputs");
  walk(pass);
  check(cudaStreamSynchronize(stream_), "decode step");
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "decode graph");
  try {
    walk(pass);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "decode graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "decode graph");
  check(cudaGraphUpload(executable, stream_), "decode graph");
  return graphs_.emplace(std::pair{rows, context}, executable).first->second;
}

void CudaExecutable::walk(const Pass& pass) {
  const std::vector<Record>& records = program_.records();
  if (!program_.embeds() && pass.hidden_in != nullptr) {
    check(cudaMemcpyAsync(pass.x, pass.hidden_in, sizeof(float) * static_cast<size_t>(pass.rows * hidden_), cudaMemcpyDeviceToDevice, stream_), "hidden rows");
  }
  for (size_t i = 0; i < records.size(); ++i) {
    std::visit([&](const auto& record) { run(record, bound_[i], pass); }, records[i]);
  }
}

void CudaExecutable::sample(std::span<const SampleRow> rows) {
  if (!program_.has_head() || !ready_) fail(Code::internal, "sample", "the program does not sample");
  if (undrawn_.size() >= static_cast<size_t>(kMostUndrawn)) fail(Code::internal, "sample", "too many steps are undrawn");
  if (rows.size() > static_cast<size_t>(bucket_.sequences)) fail(Code::internal, "sample", "more rows than sequences");
  const size_t limit = sample_inputs_.bytes();
  for (size_t first = 0; first < rows.size();) {
    // As many rows as one copy holds.
    size_t end = first, bytes = 64;
    bool plain = true;
    for (; end < rows.size(); ++end) {
      const SampleRow& row = rows[end];
      if (row.head < 0 || row.head >= heads_ || row.sampling == nullptr) fail(Code::internal, "sample", "row " + std::to_string(row.head) + " has no logits");
      if (row.slot < 0 || row.slot >= bucket_.sequences) fail(Code::internal, "sample", "slot " + std::to_string(row.slot));
      const size_t more = sizeof(SampleRowOnDevice) + row.counts.size_bytes() + row.forbidden.size_bytes() + row.allowed.size_bytes();
      if (bytes + more + 256 > limit) break;
      bytes += more;
      plain &= row.sampling->temperature == 0 && row.counts.empty() && row.forbidden.empty() && row.allowed.empty() && row.sampling->logprobs <= 0;
    }
    if (end == first) fail(Code::resource_exhausted, "sample", "penalties, biases and forbidden ids are more than the workspace was planned for");
    std::byte* host = sample_inputs_.take();
    const auto count = static_cast<int32_t>(end - first);
    std::memcpy(host, &count, sizeof count);
    auto* on = reinterpret_cast<SampleRowOnDevice*>(host + 64);
    const size_t counts_at = (64 + sizeof(SampleRowOnDevice) * (end - first) + 63) / 64 * 64;
    auto* counts = reinterpret_cast<TokenCount*>(host + counts_at);
    int32_t count_at = 0, forbidden_at = 0;
    for (size_t i = first; i < end; ++i) {
      const SampleRow& row = rows[i];
      std::copy(row.counts.begin(), row.counts.end(), counts + count_at);
      on[i - first] = {row.head, row.position, row.slot, count_at, count_at + static_cast<int32_t>(row.counts.size()), 0, 0, 0, 0, *row.sampling};
      count_at += static_cast<int32_t>(row.counts.size());
    }
    const size_t forbidden_offset = (counts_at + sizeof(TokenCount) * static_cast<size_t>(count_at) + 63) / 64 * 64;
    auto* forbidden = reinterpret_cast<int32_t*>(host + forbidden_offset);
    for (size_t i = first; i < end; ++i) {
      on[i - first].forbidden_begin = forbidden_at;
      std::copy(rows[i].forbidden.begin(), rows[i].forbidden.end(), forbidden + forbidden_at);
      forbidden_at += static_cast<int32_t>(rows[i].forbidden.size());
      on[i - first].forbidden_end = forbidden_at;
    }
    const size_t allowed_offset = (forbidden_offset + sizeof(int32_t) * static_cast<size_t>(forbidden_at) + 63) / 64 * 64;
    auto* allowed = reinterpret_cast<uint32_t*>(host + allowed_offset);
    int32_t allowed_at = 0;
    for (size_t i = first; i < end; ++i) {
      on[i - first].allowed_begin = allowed_at;
      std::copy(rows[i].allowed.begin(), rows[i].allowed.end(), allowed + allowed_at);
      allowed_at += static_cast<int32_t>(rows[i].allowed.size());
      on[i - first].allowed_end = allowed_at;
    }
    const size_t total = allowed_offset + sizeof(uint32_t) * static_cast<size_t>(allowed_at);
    auto* device = buffer<std::byte>(Buffer::sample_inputs);
    check(cudaMemcpyAsync(device, host, total, cudaMemcpyHostToDevice, stream_), "sample inputs");
    sample_inputs_.sent(stream_);
    SampleCall call;
    call.count = reinterpret_cast<const int32_t*>(device);
    call.most_rows = count;
    call.rows = reinterpret_cast<const SampleRowOnDevice*>(device + 64);
    call.counts = reinterpret_cast<const TokenCount*>(device + counts_at);
    call.forbidden = reinterpret_cast<const int32_t*>(device + forbidden_offset);
    call.allowed = reinterpret_cast<const uint32_t*>(device + allowed_offset);
    call.logits = buffer<float>(Buffer::logits);
    call.vocab = program_.vocab();
    call.plain = plain;
    call.last_ids = buffer<int32_t>(Buffer::last_ids);
    call.out = buffer<Sampled>(Buffer::drawn) + first;
    call.scratch = buffer<std::byte>(Buffer::sampling);
    cuda::sample({stream_, &device_, false}, call);
    first = end;
  }
  std::byte* host = results_.take();
  if (!rows.empty()) {
    check(cudaMemcpyAsync(host, buffer<std::byte>(Buffer::drawn), sizeof(Sampled) * rows.size(), cudaMemcpyDeviceToHost, stream_), "drawn ids");
  }
  results_.sent(stream_);
  if (undrawn_.empty()) oldest_result_ = results_.index();
  undrawn_.push_back(rows.size());
}

void CudaExecutable::drawn(std::span<Sampled> out) {
  if (undrawn_.empty() || undrawn_.front() != out.size()) fail(Code::internal, "drawn", "asks for what was not drawn");
  results_.wait(oldest_result_, *watch_);
  std::memcpy(out.data(), results_.memory(oldest_result_), out.size_bytes());
  oldest_result_ = (oldest_result_ + 1) % results_.size();
  undrawn_.erase(undrawn_.begin());
  for (const Sampled& sampled : out) {
    if (sampled.id < 0) fail(Code::internal, "logits", "hold NaN, or nothing that may be drawn");
  }
}

bool CudaExecutable::wait_drawn(const std::atomic<bool>& interrupt) {
  return undrawn_.empty() || results_.wait(oldest_result_, *watch_, &interrupt);
}

const float* CudaExecutable::logits() {
  host_logits_.resize(static_cast<size_t>(heads_) * static_cast<size_t>(program_.vocab()));
  if (!host_logits_.empty()) {
    check(cudaMemcpyAsync(host_logits_.data(), buffer<float>(Buffer::logits), host_logits_.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_), "logits");
  }
  check(cudaStreamSynchronize(stream_), "logits");
  return host_logits_.data();
}

void CudaExecutable::copy_pages(int32_t group, std::span<const std::pair<int32_t, int32_t>> from_to) {
  if (group < 0 || static_cast<size_t>(group) >= groups_.size()) fail(Code::internal, "copy_pages", "no such KV group");
  const Group& g = groups_[static_cast<size_t>(group)];
  for (const auto& [from, to] : from_to) {
    if (from < 0 || to < 0 || static_cast<uint64_t>(from) >= g.pages || static_cast<uint64_t>(to) >= g.pages) {
      fail(Code::internal, "copy_pages", "page " + std::to_string(std::max(from, to)) + " of a cache of " + std::to_string(g.pages));
    }
    if (from == to || g.page_bytes == 0) continue;
    check(cudaMemcpyAsync(g.memory + static_cast<uint64_t>(to) * g.page_bytes, g.memory + static_cast<uint64_t>(from) * g.page_bytes, g.page_bytes,
                          cudaMemcpyDeviceToDevice, stream_),
          "copy of a page");
  }
}

}  // namespace tandem::cuda
