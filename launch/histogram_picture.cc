#include "launch/histogram_picture.h"

#include <algorithm>
#include <cstdio>

namespace tandem {
namespace {

constexpr size_t kBars = 32;
constexpr double kWidth = 760, kHeight = 250, kLeft = 16, kTop = 52, kPlotHeight = 160;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return out;
}

std::string number(const char* form, double value) {
  char text[48];
  std::snprintf(text, sizeof text, form, value);
  return text;
}

uint64_t most(const NumberBins& bins) {
  uint64_t top = 1;
  for (const auto* list : {&bins.original, &bins.quantized}) {
    for (const uint64_t count : *list) top = std::max(top, count);
  }
  return top;
}

// Neighbours together.
std::vector<uint64_t> merged(const std::vector<uint64_t>& bins, size_t count) {
  std::vector<uint64_t> out(bins.empty() ? 0 : count);
  for (size_t i = 0; i < bins.size(); ++i) out[i * count / bins.size()] += bins[i];
  return out;
}

std::string outline(const std::vector<uint64_t>& bins, uint64_t top) {
  std::string path;
  const double step = (kWidth - 2 * kLeft) / static_cast<double>(bins.size());
  for (size_t i = 0; i < bins.size(); ++i) {
    const double y = kTop + kPlotHeight * (1 - static_cast<double>(bins[i]) / static_cast<double>(top));
    const std::string at = number("%.1f", y);
    path += (i == 0 ? "M" : "L") + number("%.1f", kLeft + step * static_cast<double>(i)) + " " + at + "H" + number("%.1f", kLeft + step * static_cast<double>(i + 1));
  }
  return path;
}

std::string picture_group(const HistogramPicture& p, double y) {
  const uint64_t top = most(p.bins);
  const double bottom = kTop + kPlotHeight;
  const std::string base = number("%.1f", bottom), right = number("%.1f", kWidth - kLeft), left = number("%.1f", kLeft), middle = number("%.1f", kWidth / 2);
  std::string out = "<g transform=\"translate(0 " + number("%.0f", y) + ")\">\n<text x=\"" + left + "\" y=\"18\" class=\"t\">" + escaped(p.title) + "</text>\n<text x=\"" + left +
                    "\" y=\"36\">" + escaped(p.caption) + "</text>\n<path class=\"o\" d=\"" + outline(p.bins.original, top) + "V" + base + "H" + left + "Z\"/>\n";
  if (!p.bins.quantized.empty()) out += "<path class=\"q\" d=\"" + outline(p.bins.quantized, top) + "\"/>\n";
  out += "<path class=\"a\" d=\"M" + left + " " + base + "H" + right + "\"/>\n";
  const std::string labels = number("%.1f", bottom + 16);
  out += "<text x=\"" + left + "\" y=\"" + labels + "\">" + number("%.4g", p.bins.low) + "</text><text x=\"" + middle + "\" y=\"" + labels + "\" text-anchor=\"middle\">" +
         number("%.4g", (p.bins.low + p.bins.high) / 2) + "</text><text x=\"" + right + "\" y=\"" + labels + "\" text-anchor=\"end\">" + number("%.4g", p.bins.high) + "</text>\n";
  return out + "</g>\n";
}

}  // namespace

std::string histogram_bars(const HistogramPicture& p, int width) {
  const NumberBins bins{p.bins.low, p.bins.high, merged(p.bins.original, kBars), merged(p.bins.quantized, kBars)};
  const uint64_t top = most(bins);
  const bool two = !bins.quantized.empty();
  const auto bar = static_cast<size_t>(std::clamp((width - 14) / (two ? 2 : 1) - 3, 10, 60));
  const auto bar_of = [&](uint64_t count) {
    const auto full = static_cast<size_t>((static_cast<double>(count) * static_cast<double>(bar) + static_cast<double>(top) - 1) / static_cast<double>(top));  // something is never nothing
    return std::string(std::min(full, bar), '#') + std::string(bar - std::min(full, bar), ' ');
  };
  std::string out = p.title + "\n" + p.caption + "\n";
  std::string heads = std::string(12, ' ') + "| original";
  if (two) heads += std::string(bar - 8, ' ') + "| " + p.format;
  out += heads + "\n";
  for (size_t i = 0; i < kBars; ++i) {
    const double from = bins.low + (bins.high - bins.low) * static_cast<double>(i) / kBars;
    std::string line = number("%11.4g", from) + " | " + bar_of(bins.original[i]);
    if (two) line += " | " + bar_of(bins.quantized[i]);
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

std::string histogram_svg(const std::vector<HistogramPicture>& pictures) {
  const double height = kHeight * static_cast<double>(pictures.size());
  const std::string size = number("%.0f", kWidth) + " " + number("%.0f", height);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + size + "\" width=\"" + number("%.0f", kWidth) + "\" height=\"" + number("%.0f", height) +
                    "\">\n<style>text{font:13px sans-serif;fill:#333}.t{font-weight:bold}.o{fill:#9db8d9;stroke:none}.q{fill:none;stroke:#c2410c;stroke-width:1.5}.a{stroke:#333}</style>\n";
  for (size_t i = 0; i < pictures.size(); ++i) out += picture_group(pictures[i], kHeight * static_cast<double>(i));
  return out + "</svg>\n";
}

std::string histogram_html(const std::string& title, const std::vector<HistogramPicture>& pictures) {
  std::string out = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>" + escaped(title) +
                    "</title><style>body{font:15px sans-serif;margin:24px}svg{display:block;max-width:100%}</style></head>\n<body>\n<h1>" + escaped(title) +
                    "</h1>\n<p>Filled: the original numbers. Line: quantized and back. The outermost bars hold what lies beyond.</p>\n";
  for (const HistogramPicture& picture : pictures) out += histogram_svg({picture});
  return out + "</body>\n</html>\n";
}

}  // namespace tandem
