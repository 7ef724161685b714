#include "sharding/plan.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "kernels/base/error.h"
#include "sharding/fields.h"
#include "sharding/paragraph.h"

namespace tandem {
namespace {

constexpr const char* kSchema = "tandem.plan/1";
constexpr std::array kVerdicts = {Verdict::fits, Verdict::tight, Verdict::no};
constexpr std::array kKvTypes = {KvType::fp32, KvType::bf16, KvType::fp16, KvType::fp8, KvType::int8};
constexpr int kMostDegree = 4096, kMostLayers = 1 << 16, kMostTokens = 1 << 30;

// The numbers of a device, by their names in JSON.
struct DeviceField {
  const char* name;
  uint64_t PlanDevice::*value;
};
constexpr DeviceField kDeviceFields[] = {
    {"free_bytes", &PlanDevice::free_bytes},           {"weights_bytes", &PlanDevice::weights_bytes},
    {"scales_bytes", &PlanDevice::scales_bytes},       {"kv_bytes", &PlanDevice::kv_bytes},
    {"workspace_bytes", &PlanDevice::workspace_bytes}, {"communication_bytes", &PlanDevice::communication_bytes},
    {"overhead_bytes", &PlanDevice::overhead_bytes},   {"reserve_bytes", &PlanDevice::reserve_bytes},
};

std::string format(const char* how, double value) {
  char text[64];
  std::snprintf(text, sizeof text, how, value);
  return text;
}

// What a device holds, as letters: each letter is an equal share of the larger of what is free and what is used.
std::string bar(const PlanDevice& device, size_t width) {
  const std::pair<char, uint64_t> parts[] = {
      {'W', device.weights_bytes},   {'s', device.scales_bytes},        {'K', device.kv_bytes},
      {'a', device.workspace_bytes}, {'c', device.communication_bytes}, {'o', device.overhead_bytes}};
  const uint64_t used = device.used_bytes(), whole = std::max<uint64_t>({used, device.free_bytes, 1});
  const auto column = [&](uint64_t bytes) {
    return static_cast<size_t>(static_cast<double>(bytes) / static_cast<double>(whole) * static_cast<double>(width) + 0.5);
  };
  std::string text(width, '.');
  uint64_t end = 0;
  for (const auto& [letter, bytes] : parts) {
    const size_t from = column(end), to = column(end += bytes);
    std::fill(text.begin() + from, text.begin() + to, letter);
  }
  if (used > device.free_bytes) {
    std::fill(text.begin() + column(device.free_bytes), text.end(), '!');
  } else {
    const size_t reserve = std::max(column(used), column(device.free_bytes - std::min(device.free_bytes, device.reserve_bytes)));
    std::fill(text.begin() + reserve, text.end(), 'r');
  }
  return "[" + text + "]";
}

}  // namespace

std::string_view name(Verdict verdict) {
  switch (verdict) {
    case Verdict::fits:
      return "fits";
    case Verdict::tight:
      return "tight";
    case Verdict::no:
      break;
  }
  return "no";
}

std::string_view name(Objective objective) {
  switch (objective) {
    case Objective::latency:
      return "latency";
    case Objective::throughput:
      return "throughput";
    case Objective::capacity:
      break;
  }
  return "capacity";
}

nlohmann::ordered_json to_json(const Plan& plan) {
  using Json = nlohmann::ordered_json;
  uint64_t device_bytes = 0;
  Json stages = Json::array(), devices = Json::array(), map = Json::object(), remedies = Json::array();
  for (const PlanStage& s : plan.stages) {
    stages.push_back({{"devices", s.devices},
                      {"first_layer", s.first_layer},
                      {"last_layer", s.last_layer},
                      {"embedding", s.embedding},
                      {"head", s.head},
                      {"decode_seconds", s.decode_seconds}});
  }
  for (const PlanDevice& d : plan.devices) {
    Json device = {{"id", d.id}, {"node", d.node}, {"kind", d.kind}};
    for (const DeviceField& field : kDeviceFields) device[field.name] = d.*field.value;
    device["used_bytes"] = d.used_bytes();
    device_bytes += d.weights_bytes + d.scales_bytes;
    devices.push_back(std::move(device));
  }
  for (const auto& [module, device] : plan.device_map) map[module] = device;
  for (const Remedy& r : plan.remedies) remedies.push_back({{"change", r.change}, {"gains_bytes", r.gains_bytes}, {"enough", r.enough}});
  const double bound = plan.objective_bound, value = plan.objective_value;
  return {{"schema", kSchema},
          {"verdict", name(plan.verdict)},
          {"reason", plan.reason},
          {"model",
           {{"name", plan.model_name},
            {"digest", plan.digest},
            {"layers", plan.layers},
            {"parameters", plan.parameters},
            {"format", plan.format}}},
          {"workload",
           {{"context", plan.workload.context},
            {"batch", plan.workload.batch},
            {"kv_dtype", plan.kv_dtype},
            {"chunk", plan.workload.chunk},
            {"page_tokens", plan.workload.page_tokens}}},
          {"objective", plan.objective},
          {"footprint_bytes", plan.footprint_bytes},
          {"device_bytes", device_bytes},
          {"mesh", {{"pp", plan.mesh.pp}, {"ep", plan.mesh.ep}, {"tp", plan.mesh.tp}}},
          {"stages", stages},
          {"devices", devices},
          {"device_map", map},
          {"kv_pages", plan.kv_pages},
          {"max_context", plan.max_context},
          {"max_batch", plan.max_batch},
          {"predicted",
           {{"decode_tokens_per_second", {{"low", plan.decode_low}, {"mid", plan.decode_mid}, {"high", plan.decode_high}}},
            {"prefill_tokens_per_second", Json::object()},
            {"ttft_seconds", Json::object()}}},
          {"binding", plan.binding},
          {"remedies", remedies},
          {"optimality", {{"value", value}, {"bound", bound}, {"gap", value > 0 ? std::abs(value - bound) / value : 0.0}}}};
}

Plan plan_from_json(const nlohmann::json& json, const std::string& where) {
  const Fields root(json, where, "");
  if (root.get<std::string>("schema") != kSchema) root.refuse("schema", std::string("\"") + kSchema + "\"");
  Plan plan;
  const auto verdict = root.get<std::string>("verdict");
  const auto known = std::find_if(kVerdicts.begin(), kVerdicts.end(), [&](Verdict v) { return name(v) == verdict; });
  if (known == kVerdicts.end()) root.refuse("verdict", "fits, tight or no");
  plan.verdict = *known;
  plan.reason = root.get_or<std::string>("reason", "");

  const Fields model = root.object("model");
  plan.model_name = model.get<std::string>("name");
  plan.digest = model.get<std::string>("digest");
  plan.layers = model.get<int>("layers", 1, kMostLayers);
  plan.parameters = model.get_or<uint64_t>("parameters", 0);
  plan.format = model.get<std::string>("format");

  const Fields workload = root.object("workload");
  plan.workload.context = workload.get<int32_t>("context", 1, kMostTokens);
  plan.workload.batch = workload.get<int32_t>("batch", 1, kMostTokens);
  plan.workload.chunk = workload.get<int32_t>("chunk", 1, kMostTokens);
  plan.workload.page_tokens = workload.get<int32_t>("page_tokens", 1, kMostTokens);
  plan.kv_dtype = workload.get<std::string>("kv_dtype");
  if (std::none_of(kKvTypes.begin(), kKvTypes.end(), [&plan](KvType type) { return name(type) == plan.kv_dtype; })) {
    workload.refuse("kv_dtype", "fp32, bf16, fp16, fp8 or int8");
  }
  plan.objective = root.get_or<std::string>("objective", "");
  plan.footprint_bytes = root.get_or<uint64_t>("footprint_bytes", 0);

  const std::vector<Fields> stages = root.objects("stages"), devices = root.objects("devices");
  if (stages.empty()) root.refuse("stages", "a list of at least one stage");
  for (const Fields& fields : stages) {
    PlanStage stage;
    const bool first = plan.stages.empty(), last = plan.stages.size() + 1 == stages.size();
    const int begin = first ? 0 : plan.stages.back().last_layer + 1;
    stage.devices = fields.get<std::vector<std::string>>("devices");
    if (stage.devices.empty() || (!first && stage.devices.size() != plan.stages[0].devices.size())) {
      fields.refuse("devices", "a list of as many ids as every other stage has");
    }
    stage.first_layer = fields.get<int>("first_layer", 0, kMostLayers);
    stage.last_layer = fields.get<int>("last_layer", -1, kMostLayers);
    if (stage.first_layer != begin) fields.refuse("first_layer", std::to_string(begin) + ", the layer after the stage before");
    if (stage.last_layer < begin - 1 || stage.last_layer >= plan.layers || (last && stage.last_layer != plan.layers - 1)) {
      fields.refuse("last_layer", last ? "the model's last, " + std::to_string(plan.layers - 1) : "from first_layer to the model's last");
    }
    stage.embedding = fields.get<bool>("embedding");
    stage.head = fields.get<bool>("head");
    if (stage.embedding != first) fields.refuse("embedding", first ? "true on the first stage" : "false after the first stage");
    if (stage.head != last) fields.refuse("head", last ? "true on the last stage" : "false before the last stage");
    stage.decode_seconds = fields.get_or<double>("decode_seconds", 0);
    plan.stages.push_back(std::move(stage));
  }

  const int group = static_cast<int>(plan.stages[0].devices.size());
  plan.mesh = {static_cast<int>(plan.stages.size()), 1, group};
  if (root.has("mesh")) {
    const Fields mesh = root.object("mesh");
    plan.mesh = {mesh.get<int>("pp", 1, kMostDegree), mesh.get<int>("ep", 1, kMostDegree), mesh.get<int>("tp", 1, kMostDegree)};
    if (plan.mesh.pp != static_cast<int>(stages.size()) || plan.mesh.group_size() != group) {
      root.refuse("mesh", "pp = the number of stages, and ep x tp = the devices of one");
    }
  }

  size_t rank = 0;
  for (const PlanStage& stage : plan.stages) {
    for (const std::string& id : stage.devices) {
      if (rank >= devices.size())
        bad_input(root.where("devices"), "has " + std::to_string(devices.size()) + " devices (one for each of the stages' ids)");
      const Fields& fields = devices[rank++];
      PlanDevice device;
      device.id = fields.get<std::string>("id");
      if (device.id != id) fields.refuse("id", "\"" + id + "\", in the order of the stages");
      if (std::any_of(plan.devices.begin(), plan.devices.end(), [&id](const PlanDevice& d) { return d.id == id; })) {
        fields.refuse("id", "unique");
      }
      device.node = fields.get_or<std::string>("node", "");
      device.kind = fields.get_or<std::string>("kind", "");
      for (const DeviceField& field : kDeviceFields) device.*field.value = fields.get<uint64_t>(field.name);
      if (fields.has("used_bytes") && fields.get<uint64_t>("used_bytes") != device.used_bytes()) {
        fields.refuse("used_bytes", std::to_string(device.used_bytes()) + ", the sum of what the device holds");
      }
      plan.devices.push_back(std::move(device));
    }
  }
  if (rank != devices.size()) {
    bad_input(root.where("devices"), "has " + std::to_string(devices.size()) + " devices (the stages name " + std::to_string(rank) + ")");
  }

  if (root.has("device_map")) {
    const Fields map = root.object("device_map");
    for (const auto& item : map.json().items()) plan.device_map.emplace_back(item.key(), map.get<std::string>(item.key().c_str()));
  }
  const int32_t whole = (plan.workload.context + plan.workload.page_tokens - 1) / plan.workload.page_tokens;
  if (int64_t{whole} * plan.workload.batch > INT32_MAX) workload.refuse("batch", "smaller: that many pages cannot be numbered");
  plan.kv_pages = root.get_or<std::vector<int32_t>>("kv_pages", {whole * plan.workload.batch}, 1);
  plan.max_context = root.get_or<int32_t>("max_context", 0);
  plan.max_batch = root.get_or<int32_t>("max_batch", 0);
  if (root.has("predicted")) {
    const Fields predicted = root.object("predicted");
    if (predicted.has("decode_tokens_per_second")) {
      const Fields decode = predicted.object("decode_tokens_per_second");
      plan.decode_low = decode.get_or<double>("low", 0);
      plan.decode_mid = decode.get_or<double>("mid", 0);
      plan.decode_high = decode.get_or<double>("high", 0);
    }
  }
  plan.binding = root.get_or<std::string>("binding", "");
  if (root.has("remedies")) {
    for (const Fields& fields : root.objects("remedies")) {
      plan.remedies.push_back(
          {fields.get<std::string>("change"), fields.get<uint64_t>("gains_bytes"), fields.get_or<bool>("enough", false)});
    }
  }
  if (root.has("optimality")) {
    const Fields optimality = root.object("optimality");
    plan.objective_value = optimality.get_or<double>("value", 0);
    plan.objective_bound = optimality.get_or<double>("bound", 0);
  }
  return plan;
}

std::string table(const Plan& plan, int columns) {
  const size_t width = static_cast<size_t>(std::clamp(columns, 60, 400));
  std::string out;
  const char* verdict = plan.verdict == Verdict::fits    ? "fits"
                        : plan.verdict == Verdict::tight ? "fits with less than the reserve"
                                                         : "does not fit";
  wrap(out,
       plan.model_name + " (" + plan.format + "), " + format("%.2f", static_cast<double>(plan.parameters) * 1e-9) +
           " billion parameters, " + std::to_string(plan.layers) + " layers: " + verdict,
       width, 2);
  wrap(out,
       "context " + std::to_string(plan.workload.context) + " tokens, batch " + std::to_string(plan.workload.batch) + ", KV " +
           plan.kv_dtype + ", chunk " + std::to_string(plan.workload.chunk) + ", page " + std::to_string(plan.workload.page_tokens) +
           " tokens; objective " + plan.objective + ", " + plan.mesh.text(),
       width, 2);
  uint64_t device_bytes = 0;
  for (const PlanDevice& d : plan.devices) device_bytes += d.weights_bytes + d.scales_bytes;
  wrap(out,
       "footprint " + human_bytes(plan.footprint_bytes) + " as Hugging Face counts, " + human_bytes(device_bytes) +
           " of weights and scales on devices",
       width, 2);
  out += "\n";

  const size_t bytes_width = 11;
  size_t id_width = 6, kind_width = 4, layers_width = 6;
  std::vector<std::string> layers;  // of each device
  for (const PlanStage& stage : plan.stages) {
    std::string text =
        stage.last_layer < stage.first_layer ? "none" : std::to_string(stage.first_layer) + "-" + std::to_string(stage.last_layer);
    if (stage.embedding) text = "embed " + text;
    if (stage.head) text += " head";
    layers.insert(layers.end(), stage.devices.size(), text);
  }
  layers.resize(plan.devices.size());
  const auto shortened = [](const std::string& text, size_t most) { return text.size() <= most ? text : text.substr(0, most - 2) + ".."; };
  for (size_t i = 0; i < plan.devices.size(); ++i) {
    id_width = std::clamp(plan.devices[i].id.size(), id_width, size_t{16});
    kind_width = std::clamp(plan.devices[i].kind.size(), kind_width, size_t{14});
    layers_width = std::clamp(layers[i].size(), layers_width, size_t{20});
  }
  const bool narrow = id_width + kind_width + layers_width + 3 * bytes_width + 6 > width;
  const auto line = [&](const std::string& id, const std::string& kind, const std::string& held, const std::string& used,
                        const std::string& free, const std::string& reserve) {
    std::string text = pad(shortened(id, id_width), id_width) + " ";
    if (!narrow) text += pad(shortened(kind, kind_width), kind_width) + " ";
    text += pad(shortened(held, layers_width), layers_width) + " " + pad(used, bytes_width, true) + " " + pad(free, bytes_width, true);
    if (!narrow) text += " " + pad(reserve, bytes_width, true);
    out += text.substr(0, std::min(text.find_last_not_of(' ') + 1, width)) + "\n";
  };
  line("device", "kind", "layers", "used", "free", "reserve");
  for (size_t i = 0; i < plan.devices.size(); ++i) {
    const PlanDevice& d = plan.devices[i];
    line(d.id, d.kind, layers[i], human_bytes(d.used_bytes()), human_bytes(d.free_bytes), human_bytes(d.reserve_bytes));
    const std::string percent =
        format(" %.0f %%", 100.0 * static_cast<double>(d.used_bytes()) / static_cast<double>(std::max<uint64_t>(d.free_bytes, 1)));
    out += "  " + bar(d, width - 4 - std::max<size_t>(percent.size(), 7)) + percent + "\n";
  }
  wrap(out, "W weights, s scales, K KV, a workspace, c communication, o overhead, r reserve, . free, ! too much", width, 2, 2);
  out += "\n";

  if (plan.max_context > 0 || plan.max_batch > 0) {
    wrap(out,
         "most that fits: context " + std::to_string(plan.max_context) + " tokens (batch " + std::to_string(plan.workload.batch) +
             "), batch " + std::to_string(plan.max_batch) + " (context " + std::to_string(plan.workload.context) + ")",
         width, 2);
  }
  if (plan.decode_mid > 0) {
    wrap(out,
         "predicted decode: " + format("%.1f", plan.decode_mid) + " tokens/s (" + format("%.1f", plan.decode_low) + " to " +
             format("%.1f", plan.decode_high) + ")",
         width, 2);
  }
  if (!plan.binding.empty()) wrap(out, "binding: " + plan.binding, width, 2);
  if (!plan.reason.empty()) wrap(out, (plan.verdict == Verdict::no ? "does not fit: " : "tight: ") + plan.reason, width, 2);
  for (const Remedy& r : plan.remedies) {
    wrap(out, r.change + ": gains " + human_bytes(r.gains_bytes) + (r.enough ? ", enough" : ", not enough alone"), width, 4, 2);
  }
  return out;
}

}  // namespace tandem
