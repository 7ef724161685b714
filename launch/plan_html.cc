#include "launch/plan_html.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace tandem {
namespace {

constexpr int kWidth = 1000, kLeft = 150, kRight = 170, kBar = 26, kRow = 44, kStage = 64;

struct Use { const char* name; const char* color; uint64_t PlanDevice::* bytes; };
constexpr Use kUses[] = {{"weights", "#3b6fb6", &PlanDevice::weights_bytes},      {"scales", "#7fa8d9", &PlanDevice::scales_bytes},
                         {"KV cache", "#e08a2e", &PlanDevice::kv_bytes},          {"workspace", "#6aa84f", &PlanDevice::workspace_bytes},
                         {"communication", "#a64d79", &PlanDevice::communication_bytes}, {"overhead", "#8a8a8a", &PlanDevice::overhead_bytes}};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string rectangle(double x, double y, double width, double height, const std::string& fill, const std::string& tip) {
  return "<rect x='" + number(x) + "' y='" + number(y) + "' width='" + number(std::max(width, 0.0)) + "' height='" + number(height) + "' fill='" + fill +
         "'><title>" + escaped(tip) + "</title></rect>\n";
}

std::string label(double x, double y, const std::string& text, const std::string& style = "") {
  return "<text x='" + number(x) + "' y='" + number(y) + "' " + style + ">" + escaped(text) + "</text>\n";
}

std::string layers_of(const PlanStage& stage) {
  std::string text = stage.embedding ? "embedding" : "";
  if (stage.last_layer >= stage.first_layer) {
    text += std::string(text.empty() ? "" : ", ") + "layers " + std::to_string(stage.first_layer) + "-" + std::to_string(stage.last_layer);
  }
  if (stage.head) text += std::string(text.empty() ? "" : ", ") + "head";
  return text;
}

// Stages left to right, as wide as their share of the layers.
std::string stages_svg(const Plan& plan) {
  std::string out = "<svg viewBox='0 0 " + std::to_string(kWidth) + " " + std::to_string(kStage + 8) + "' role='img' aria-label='stages'>\n";
  double weight = 0;
  const auto width_of = [](const PlanStage& stage) { return static_cast<double>(stage.last_layer - stage.first_layer + 1) + stage.embedding + stage.head; };
  for (const PlanStage& stage : plan.stages) weight += width_of(stage);
  double x = 0;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const PlanStage& stage = plan.stages[i];
    const double width = kWidth * width_of(stage) / std::max(weight, 1.0);
    std::string devices;
    for (const std::string& device : stage.devices) devices += (devices.empty() ? "" : ", ") + device;
    out += rectangle(x + 1, 2, width - 2, kStage, i % 2 ? "#dbe6f4" : "#eaf0f8", "stage " + std::to_string(i) + ": " + layers_of(stage) + " on " + devices);
    out += label(x + 8, 22, "stage " + std::to_string(i), "font-weight='bold'") + label(x + 8, 40, layers_of(stage)) + label(x + 8, 57, "on " + devices);
    x += width;
  }
  return out + "</svg>\n";
}

std::string devices_svg(const Plan& plan) {
  uint64_t widest = 1;
  for (const PlanDevice& device : plan.devices) widest = std::max({widest, device.free_bytes, device.used_bytes()});
  const int height = kRow * static_cast<int>(plan.devices.size()) + 10;
  std::string out = "<svg viewBox='0 0 " + std::to_string(kWidth) + " " + std::to_string(height) + "' role='img' aria-label='memory of devices'>\n";
  const double scale = static_cast<double>(kWidth - kLeft - kRight) / static_cast<double>(widest);
  double y = 6;
  for (const PlanDevice& device : plan.devices) {
    const double free_width = static_cast<double>(device.free_bytes) * scale;
    out += label(0, y + 17, device.id + (device.kind.empty() || device.kind == device.id ? "" : " (" + device.kind + ")"), "font-weight='bold'");
    out += rectangle(kLeft, y, free_width, kBar, "#eeeeee", human_bytes(device.free_bytes) + " free before the start");
    double x = kLeft;
    for (const Use& use : kUses) {
      const uint64_t bytes = device.*use.bytes;
      const double width = static_cast<double>(bytes) * scale;
      if (bytes > 0) out += rectangle(x, y, width, kBar, use.color, std::string(use.name) + ": " + std::to_string(bytes) + " bytes (" + human_bytes(bytes) + ")");
      x += width;
    }
    const double limit = kLeft + static_cast<double>(device.free_bytes - std::min(device.free_bytes, device.reserve_bytes)) * scale;
    out += "<line x1='" + number(limit) + "' x2='" + number(limit) + "' y1='" + number(y - 3) + "' y2='" + number(y + kBar + 3) +
           "' stroke='#c00' stroke-dasharray='3 2'><title>" + escaped("reserve: " + human_bytes(device.reserve_bytes)) + "</title></line>\n";
    out += label(std::max(x, kLeft + free_width) + 8, y + 17, human_bytes(device.used_bytes()) + " of " + human_bytes(device.free_bytes));
    y += kRow;
  }
  return out + "</svg>\n";
}

std::string legend() {
  std::string out = "<p>";
  for (const Use& use : kUses) out += "<span class='key' style='background:" + std::string(use.color) + "'></span>" + use.name + " &nbsp; ";
  return out + "<span class='key' style='background:#eeeeee'></span>free &nbsp; <span style='color:#c00'>&#9478;</span> reserve begins</p>\n";
}

std::string verdict_text(const Plan& plan) {
  if (plan.verdict == Verdict::fits) return "fits";
  return plan.verdict == Verdict::tight ? "fits, with less than the reserve" : "does not fit: " + plan.reason;
}

std::string facts(const Plan& plan) {
  const auto row = [](const std::string& name, const std::string& value) { return "<tr><th>" + escaped(name) + "</th><td>" + escaped(value) + "</td></tr>\n"; };
  std::string out = "<table>\n" + row("verdict", verdict_text(plan));
  out += row("model", plan.model_name + ", " + std::to_string(plan.layers) + " layers, " + std::to_string(plan.parameters) + " parameters, " + plan.format);
  out += row("workload", std::to_string(plan.workload.batch) + " sequences of " + std::to_string(plan.workload.context) + " tokens, KV " + plan.kv_dtype +
                             ", pages of " + std::to_string(plan.workload.page_tokens) + ", chunks of " + std::to_string(plan.workload.chunk));
  out += row("limits", "context up to " + std::to_string(plan.max_context) + " with this batch, batch up to " + std::to_string(plan.max_batch) + " with this context");
  out += row("mesh", plan.mesh.text());
  if (plan.decode_mid > 0) out += row("decode", number(plan.decode_low) + " to " + number(plan.decode_high) + " tokens/s expected");
  if (!plan.binding.empty()) out += row("binding", plan.binding);
  for (const Remedy& remedy : plan.remedies) out += row("gains " + human_bytes(remedy.gains_bytes), remedy.change);
  return out + "</table>\n";
}

// Context against batch on doubling scales; below and left of the line fits.
std::string frontier_svg(const Solution& frontier) {
  constexpr double kHeight = 420, kTop = 20, kBottom = 50, kSide = 70;
  const auto& rows = frontier.rows;
  const auto span = [](double least, double most) { return std::max(std::log2(most / least), 1.0); };
  const double least = rows.front().context, wide = span(least, rows.back().context), high = span(1, rows.front().batch);
  const auto x = [&](double context) { return kSide + std::log2(context / least) / wide * (kWidth - 2 * kSide - 40); };
  const auto y = [&](double batch) { return kHeight - kBottom - std::log2(batch) / high * (kHeight - kTop - kBottom - 20); };
  std::string line, points;
  for (const SolutionRow& row : rows) {
    const std::string tip = "context " + std::to_string(row.context) + ", batch " + std::to_string(row.batch) + "; stopped by " + row.binding;
    line += number(x(row.context)) + "," + number(y(row.batch)) + " ";
    points += "<circle cx='" + number(x(row.context)) + "' cy='" + number(y(row.batch)) + "' r='5' fill='#3b6fb6'><title>" + escaped(tip) + "</title></circle>\n";
    points += label(x(row.context) + 8, y(row.batch) - 8, std::to_string(row.batch)) +
              label(x(row.context), kHeight - kBottom + 20, std::to_string(row.context), "text-anchor='middle'");
  }
  return "<svg viewBox='0 0 " + std::to_string(kWidth) + " " + number(kHeight) + "' role='img' aria-label='context against batch'>\n<polyline points='" + line +
         "' fill='none' stroke='#3b6fb6' stroke-width='2'/>\n" + points + label(kWidth / 2.0, kHeight - 8, "context, tokens", "text-anchor='middle'") +
         label(4, kTop, "sequences at once") + "</svg>\n";
}

std::string page(const std::string& title, const std::string& body) {
  return "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>" + title +
         "</title>\n<style>body{font:15px system-ui,sans-serif;max-width:1040px;margin:2em auto;color:#222}svg{width:100%;font:14px system-ui,sans-serif}"
         "th{text-align:left;padding:2px 14px 2px 0;vertical-align:top;font-weight:normal;color:#666}.key{display:inline-block;width:12px;height:12px;"
         "margin-right:4px}</style></head>\n<body><h1>" + title + "</h1>\n" + body + "</body></html>\n";
}

}  // namespace

std::string plan_html(const Plan& plan) {
  return page(escaped(plan.model_name.empty() ? "plan" : plan.model_name),
              facts(plan) + "<h2>Stages</h2>\n" + stages_svg(plan) + "<h2>Memory</h2>\n" + devices_svg(plan) + legend());
}

std::string frontier_html(const Solution& frontier) {
  std::string rows;
  for (const SolutionRow& row : frontier.rows) {
    rows += "<tr><th>" + std::to_string(row.context) + "</th><td>" + std::to_string(row.batch) + "</td><td>" + escaped(row.binding) + "</td></tr>\n";
  }
  return page("frontier", "<p>" + escaped(frontier.headline) + "</p>\n" + frontier_svg(frontier) +
                              "<table>\n<tr><th>context</th><th>batch</th><th>stopped by</th></tr>\n" + rows + "</table>\n");
}

}  // namespace tandem
