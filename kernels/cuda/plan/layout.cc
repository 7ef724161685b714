#include "kernels/cuda/plan/layout.h"

#include <algorithm>

#include "kernels/cuda/plan/tile4.h"
#include "kernels/formats/nf4.h"

namespace tandem::cuda {
namespace {

constexpr Resident kVector{"vector_fp32", Kind::vector, Element::f32, false};
constexpr Resident kDense[] = {{"dense_fp32", Kind::dense, Element::f32, false},
                               {"dense_bf16", Kind::dense, Element::bf16, false},
                               {"dense_fp16", Kind::dense, Element::f16, false}};
constexpr Resident kWidened[] = {{"widened_fp32", Kind::dense, Element::f32, false},
                                 {"widened_bf16", Kind::dense, Element::bf16, false},
                                 {"widened_fp16", Kind::dense, Element::f16, false}};
struct Tiles { std::string_view name; Resident resident; };
constexpr Tiles kTiles[] = {{"nf4", {"nf4_tile", Kind::tile4, Element::bf16, false}},
                            {"nf4 dq", {"nf4_dq_tile", Kind::tile4, Element::bf16, true}},
                            {"fp4", {"fp4_tile", Kind::tile4, Element::bf16, false}},
                            {"fp4 dq", {"fp4_dq_tile", Kind::tile4, Element::bf16, true}}};

Element element_of(DType type) { return type == DType::f32 ? Element::f32 : type == DType::bf16 ? Element::bf16 : Element::f16; }

const Resident& tiles_of(const FourBit& format) {
  const std::string name = std::string(format.codebook() == Codebook::nf4 ? "nf4" : "fp4") + (format.nested() ? " dq" : "");
  return std::find_if(std::begin(kTiles), std::end(kTiles), [&](const Tiles& t) { return t.name == name; })->resident;
}

}  // namespace

Element element_of(Compute compute) {
  constexpr Element kElements[] = {Element::f32, Element::bf16, Element::f16, Element::bf16};
  return kElements[static_cast<int>(compute)];
}

WeightLayout layout(const Format& format, int64_t rows, int64_t cols, Use use, const Arithmetic& arithmetic) {
  WeightLayout layout;
  layout.use = use, layout.rows = rows, layout.cols = cols, layout.format = &format;
  const auto is = [&layout](const Resident& resident) {
    layout.kernel = resident.name;
    layout.opaque = &resident;
  };
  if (use == Use::vector) {
    is(kVector);
    layout.weights_bytes = sizeof(float) * static_cast<uint64_t>(rows * cols);
    return layout;
  }
  const Element element = element_of(arithmetic.compute);
  if (const auto* four = dynamic_cast<const FourBit*>(&format);
      four != nullptr && use == Use::product && element == Element::bf16 && tile4_holds(format, rows, cols)) {
    is(tiles_of(*four));
    const Tile4 tiles = tile4(format, rows, cols);
    layout.weights_bytes = tiles.codes_bytes;
    layout.scales_bytes = tiles.bytes - tiles.codes_bytes;
    return layout;
  }
  // A router is small, and one block reads it whole (enter_mixture): widened, whatever its format.
  // A table that is only looked up keeps its own type; what is multiplied has the activations' type.
  const bool own = format.is_dense() && (use == Use::table || element_of(format.dtype()) == element);
  const Element kept = own ? element_of(format.dtype()) : element;
  is((own ? kDense : kWidened)[static_cast<int>(kept)]);
  layout.weights_bytes = static_cast<uint64_t>(rows) * static_cast<uint64_t>(dense_stride(cols)) * static_cast<uint64_t>(size(kept));
  return layout;
}

}  // namespace tandem::cuda
