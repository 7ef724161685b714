#include "launch/module_tree.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>

namespace tandem {
namespace {

using nlohmann::json;

constexpr std::string_view kCausal = "ForCausalLM";

// What print() shows of an activation module, by its name in config.json.
struct ActivationClass { std::string_view name, shown; };
constexpr ActivationClass kActivations[] = {{"silu", "SiLU()"}, {"swish", "SiLU()"}, {"gelu", "GELUActivation()"}, {"relu", "ReLU()"},
                                            {"gelu_new", "NewGELUActivation()"}, {"gelu_pytorch_tanh", "PytorchGELUTanh()"}};

// Modules without weights of their own, by the end of their name; the class is shown behind the family's prefix ("LlamaModel").
struct ContainerClass { std::string_view name, shown; bool activation; };
constexpr ContainerClass kContainers[] = {{"model", "Model", false}, {"self_attn", "Attention", false}, {"mlp", "MLP", true},
                                          {"block_sparse_moe", "SparseMoeBlock", false}};

bool is_number(const std::string& text) { return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }); }
bool is_norm(const std::string& part) { return part == "norm" || part.ends_with("norm"); }

std::string architecture(const Blueprint& blueprint) {
  const json& config = blueprint.checkpoint.config;
  const auto found = config.find("architectures");
  if (found != config.end() && found->is_array() && !found->empty() && (*found)[0].is_string()) return (*found)[0];
  std::string family(blueprint.model->family());
  family[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(family[0])));
  return family + std::string(kCausal);
}

std::string prefix_of(std::string name) {
  if (name.ends_with(kCausal)) name.erase(name.size() - kCausal.size());
  return name;
}

std::string torch_name(DType type) {
  switch (type) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::i8: return "int8";
    default: return "uint8";
  }
}

std::string linear_class(const Format& format) {
  const std::string_view name = format.name();
  if (name.starts_with("nf4") || name.starts_with("fp4")) return "Linear4bit";
  if (name == "int8") return "Linear8bitLt";
  return "Linear";
}

struct Node {
  std::string text;                                         // of a leaf: what follows "(name): "
  std::vector<std::pair<std::string, std::unique_ptr<Node>>> children;
  Node& child(const std::string& name) {
    for (auto& [have, node] : children) {
      if (have == name) return *node;
    }
    return *children.emplace_back(name, std::make_unique<Node>()).second;
  }
};

class Printer {
 public:
  explicit Printer(const Blueprint& blueprint) : architecture_(architecture(blueprint)), prefix_(prefix_of(architecture_)) {
    activation_ = blueprint.checkpoint.config.value("hidden_act", "silu");
    const auto row = std::find_if(std::begin(kActivations), std::end(kActivations), [this](const ActivationClass& a) { return a.name == activation_; });
    if (row != std::end(kActivations)) activation_ = row->shown;
  }

  std::string print(const Node& root) const { return architecture_ + "(\n" + body(root, "", 1) + ")"; }

 private:
  // A container's class and, behind its children, the modules that hold nothing.
  std::string class_of(const std::string& name, const std::string& parent) const {
    if (is_number(name)) return prefix_ + (parent == "experts" ? "BlockSparseTop2MLP" : "DecoderLayer");
    if (name == "layers" || name == "experts") return "ModuleList";
    for (const ContainerClass& row : kContainers) {
      if (row.name == name) return prefix_ + std::string(row.shown);
    }
    return "Module";
  }
  std::string weightless(const std::string& name, const std::string& parent, const std::string& indent) const {
    const bool expert = is_number(name) && parent == "experts";
    const bool mlp = std::any_of(std::begin(kContainers), std::end(kContainers), [&](const ContainerClass& row) { return row.name == name && row.activation; });
    if (expert || mlp) return indent + "(act_fn): " + activation_ + "\n";
    return "";
  }

  std::string body(const Node& node, const std::string& name, int depth) const {
    const std::string indent(static_cast<size_t>(depth) * 2, ' ');
    std::vector<std::pair<std::string, std::string>> shown;  // name, text
    for (const auto& [child_name, child] : node.children) {
      if (child->children.empty()) {
        shown.push_back({child_name, child->text});
        continue;
      }
      const std::string inner = body(*child, child_name, depth + 1) + weightless(child_name, name, indent + "  ");
      shown.push_back({child_name, class_of(child_name, name) + "(\n" + inner + indent + ")"});
    }
    std::string out;
    for (size_t i = 0; i < shown.size();) {
      size_t end = i + 1;  // equal neighbours are one line, as torch shows a ModuleList
      while (is_number(shown[i].first) && end < shown.size() && shown[end].second == shown[i].second) ++end;
      if (end - i > 1) {
        out += indent + "(" + shown[i].first + "-" + shown[end - 1].first + "): " + std::to_string(end - i) + " x " + shown[i].second + "\n";
      } else {
        out += indent + "(" + shown[i].first + "): " + shown[i].second + "\n";
      }
      i = end;
    }
    return out;
  }

  std::string architecture_, prefix_, activation_;
};

// transformers constructs norms after what they norm, and an expert's w1, w2, w3 in that order.
void sort_like_transformers(Node& node) {
  std::stable_sort(node.children.begin(), node.children.end(), [](const auto& a, const auto& b) {
    const auto rank = [](const std::string& name) { return name == "rotary_emb" ? 2 : is_norm(name) ? 1 : 0; };
    if (rank(a.first) != rank(b.first)) return rank(a.first) < rank(b.first);
    const bool numbered = a.first.size() == 2 && b.first.size() == 2 && a.first[0] == 'w' && b.first[0] == 'w';
    return numbered && a.first < b.first;
  });
  for (auto& [name, child] : node.children) sort_like_transformers(*child);
}

void for_each_leaf(const Node& node, const std::string& path, const std::function<void(const std::string&)>& visit) {
  for (const auto& [name, child] : node.children) {
    const std::string full = path.empty() ? name : path + "." + name;
    if (child->children.empty()) {
      visit(full);
    } else {
      for_each_leaf(*child, full, visit);
    }
  }
}

std::string leaf_text(const Blueprint& blueprint, const ModuleRow& row) {
  const json& config = blueprint.checkpoint.config;
  const auto size = [&row](size_t i) { return std::to_string(row.shape[i]); };
  if (row.class_name == "Embedding") {
    const auto padding = config.find("pad_token_id");
    const bool padded = padding != config.end() && padding->is_number_integer();
    return "Embedding(" + size(0) + ", " + size(1) + (padded ? ", padding_idx=" + padding->dump() : "") + ")";
  }
  if (row.class_name.ends_with("RotaryEmbedding")) return row.class_name + "()";
  if (row.class_name.starts_with("Linear")) {
    std::string text = row.class_name + "(in_features=" + size(1) + ", out_features=" + size(0) + ", bias=" + (row.bias ? "True" : "False");
    const bool torch = row.class_name != "Linear" || row.format == "fp32" || row.format == "fp16" || row.format == "bf16";
    return text + (torch ? "" : ", format=" + row.format) + ")";
  }
  char epsilon[32];
  std::snprintf(epsilon, sizeof epsilon, "%g", config.value("rms_norm_eps", 1e-6));
  return row.class_name + "((" + size(0) + ",), eps=" + epsilon + ")";
}

Node& at_path(Node& root, const std::string& name) {  // made when it is not there
  Node* node = &root;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    node = &node->child(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return *node;
}

}  // namespace

std::vector<ModuleRow> module_rows(const Blueprint& blueprint, const Backend& backend) {
  const Model& model = *blueprint.model;
  const std::string prefix = prefix_of(architecture(blueprint));
  const Slicer slicer(model.weights, blueprint.formats.held, Mesh{});
  std::map<WeightId, uint64_t> device_bytes;
  for (const HeldWeight& held : held_weights(model, slicer, {0, model.shape.layers - 1, true, true}, 0)) {
    const Rectangle part = slicer.part(held.id, 0);
    device_bytes[held.id] = held_bytes(backend.layout(*blueprint.formats.held[static_cast<size_t>(held.id)], part.rows(), part.cols(), held.use, blueprint.arithmetic)).sum();
  }

  std::map<std::string, ModuleRow> by_name;
  Node order;
  uint64_t counted = 0;
  for (WeightId id = 0; id < model.weights.size(); ++id) {
    const WeightRow& weight = model.weights[id];
    const Format& format = *blueprint.formats.held[static_cast<size_t>(id)];
    const std::string name = weight.name.substr(0, weight.name.rfind('.'));
    ModuleRow& row = by_name[name];
    row.name = name;
    const uint64_t bytes = weight.tied_to == kNoWeight ? format.components(weight.rows.size(), weight.cols.size())[0].bytes : 0;
    row.footprint_bytes += bytes;
    counted += bytes;
    if (const auto found = device_bytes.find(id); found != device_bytes.end()) row.device_bytes += found->second;
    if (weight.role == Role::bias) {
      row.bias = true;
      continue;
    }
    row.format = std::string(format.name());
    row.dtype = torch_name(format.components(weight.rows.size(), weight.cols.size())[0].dtype);
    if (weight.role == Role::norm) {
      row.class_name = prefix + "RMSNorm";
      row.shape = {weight.cols.size()};
    } else {
      row.class_name = weight.role == Role::embedding ? "Embedding" : linear_class(format);
      row.shape = {weight.rows.size(), weight.cols.size()};
    }
    at_path(order, name);
  }
  const std::string rotary = "model.rotary_emb";
  const uint64_t buffers = footprint_bytes(blueprint) - counted;
  if (buffers > 0) {
    by_name[rotary] = {.name = rotary, .class_name = prefix + "RotaryEmbedding", .shape = {static_cast<int64_t>(buffers / sizeof(float))},
                       .dtype = "float32", .format = "fp32", .footprint_bytes = buffers};
    at_path(order, rotary);
  }
  sort_like_transformers(order);
  std::vector<ModuleRow> rows;
  for_each_leaf(order, "", [&](const std::string& name) { rows.push_back(std::move(by_name[name])); });
  return rows;
}

std::string module_tree(const Blueprint& blueprint, const std::vector<ModuleRow>& rows) {
  Node root;
  for (const ModuleRow& row : rows) at_path(root, row.name).text = leaf_text(blueprint, row);
  return Printer(blueprint).print(root);
}

}  // namespace tandem
