// How numbers are distributed before and after they are quantized: as bars in a terminal, as SVG, as an HTML page of them. Pure.
#pragma once
#include <string>
#include <vector>

#include "runtime/model/weight_error.h"

namespace tandem {

struct HistogramPicture {
  std::string title, caption;  // a tensor's name; its shape and error
  std::string format;          // "": the original alone
  NumberBins bins;
};

std::string histogram_bars(const HistogramPicture& picture, int width);       // for a terminal of so many columns
std::string histogram_svg(const std::vector<HistogramPicture>& pictures);     // one below the other
std::string histogram_html(const std::string& title, const std::vector<HistogramPicture>& pictures);  // one file, no script, nothing from elsewhere

}  // namespace tandem
