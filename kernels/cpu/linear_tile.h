// The CPU products themselves, written once over a few vector operations. Each linear_<isa>.cc defines those operations in an unnamed
// namespace and includes this file inside it, so that every instruction set has its own copy compiled with its own flags.
//
// What the including file provides: F and I, 16 floats and 16 dwords; kMaxTokens, how many rows of activations share a decoded
// weight; and
//   F zero_f()  load_f(p)  load_half(p)  splat(p)  add  mul  fma(a, b, c) = a * b + c  fnma = c - a * b  round_here(F): the value, and
//     no contraction across it      load_some(p, lanes)  store(p, F, lanes)
//   I load_i(p)  set(x)  splat_i(p)  and_(I, I)  or_(I, I)  srl<n>(I)  sll<n>(I)  srl(I, n)  add_i  to_float(I)  bytes_u(p): 16 uint8
//     widened   bytes_s(p): 16 int8 widened
//   Table, table(p), look_up(Table, I) by the low four bits of each dword; look_up_256(p, I); gather(base, I); differ(I, I): anywhere
//   top_byte<n>(I): byte n of each dword moved to the top, zero below
//   I dot(acc, I u8, p): acc + the sum over four bytes of u8 * (four int8 at p)
//   signed: I prepare_signed(I s8)  I signed_start(p): where dot sums start, p an Int8Block::offset   dot_signed(acc, prepared, p)
//
// The products are flattened (everything is inlined into them): sums that are not all in registers cost a factor of three.
//
// One order of additions along K for any number of tokens, so that a row's result does not depend on its company: int8 sums are exact
// within 32 columns and added to a float chain block by block; fp32 keeps two chains (even and odd steps) that are folded into the
// total every 32 columns.

// Weights are asked for this far ahead: what a core's own prefetchers bring is a third of what memory can deliver. The addresses run on
// past the tile and past the matrix, into what is needed next when a loader lays matrices out in the order of their use.
constexpr int64_t kAhead = 10240;
template <int64_t kBytes>
inline void prefetch(const std::byte* at) {
  for (int64_t i = 0; i < kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(at + kAhead + i), _MM_HINT_T0);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LINEAR_FLATTEN  // minutes to compile, and nobody measures these builds
#else
#define LINEAR_FLATTEN [[gnu::flatten]]
#endif

template <int kTokens>
struct Int8Sums {
  F total[kTokens], minimums[kTokens];
  const Int8Block* x[kTokens];

  Int8Sums(const Int8Rows& rows, int64_t token) {
    for (int t = 0; t < kTokens; ++t) {
      total[t] = minimums[t] = zero_f();
      x[t] = rows.blocks + (token + t) * rows.stride;
    }
  }
  // A nibble block against block b of every row: sum of code * activation, the codes taken as they are (kBias 0) or less 8.
  template <bool kLess8, bool kMinimum>
  void nibbles(const std::byte* at, int64_t b, F d, F m) {
    const I low_mask = set(0x0f0f0f0f);
    I low[4], high[4];
    for (int j = 0; j < 4; ++j) {
      const I v = load_i(at + 64 * j);
      low[j] = and_(v, low_mask);
      high[j] = and_(srl<4>(v), low_mask);
    }
    for (int t = 0; t < kTokens; ++t) {
      const Int8Block& a = x[t][b];
      I near = kLess8 ? splat_i(&a.offset[0]) : set(0), far = kLess8 ? splat_i(&a.offset[1]) : set(0);
      for (int j = 0; j < 4; ++j) {
        near = dot(near, low[j], a.codes + 4 * j);
        far = dot(far, high[j], a.codes + 16 + 4 * j);
      }
      total[t] = fma(to_float(add_i(near, far)), mul(d, splat(&a.scale)), total[t]);
      if (kMinimum) minimums[t] = fma(m, splat(&a.sum), minimums[t]);
    }
  }
  void bytes(const std::byte* at, int64_t b, F d) {
    I w[8];
    for (int j = 0; j < 8; ++j) w[j] = prepare_signed(load_i(at + 64 * j));
    for (int t = 0; t < kTokens; ++t) {
      const Int8Block& a = x[t][b];
      I near = signed_start(&a.offset[0]), far = signed_start(&a.offset[1]);
      for (int j = 0; j < 4; ++j) {
        near = dot_signed(near, w[j], a.codes + 4 * j);
        far = dot_signed(far, w[j + 4], a.codes + 16 + 4 * j);
      }
      total[t] = fma(to_float(add_i(near, far)), mul(d, splat(&a.scale)), total[t]);
    }
  }
  // Six bits less 32, each half block with its own scale.
  void six_bits(const I (&w)[8], int64_t b, F d_near, F d_far) {
    for (int t = 0; t < kTokens; ++t) {
      const Int8Block& a = x[t][b];
      I near = sll<2>(splat_i(&a.offset[0])), far = sll<2>(splat_i(&a.offset[1]));
      for (int j = 0; j < 4; ++j) {
        near = dot(near, w[j], a.codes + 4 * j);
        far = dot(far, w[j + 4], a.codes + 16 + 4 * j);
      }
      const F both = fma(to_float(far), d_far, mul(to_float(near), d_near));
      total[t] = fma(both, splat(&a.scale), total[t]);
    }
  }
  template <bool kMinimum, bool kSubtract = false>
  F result(int t) const {
    return !kMinimum ? total[t] : kSubtract ? sub(total[t], minimums[t]) : add(total[t], minimums[t]);
  }
};

template <int kTokens>
struct Fp32Sums {
  F total[kTokens], even[kTokens], odd[kTokens];
  const float* x[kTokens];

  Fp32Sums(const Input& in, int64_t token) {
    for (int t = 0; t < kTokens; ++t) {
      total[t] = even[t] = odd[t] = zero_f();
      x[t] = in.values + (token + t) * in.stride;
    }
  }
  // Sixteen rows' weights of column k.
  template <bool kOdd>
  void take(F w, int64_t k) {
    for (int t = 0; t < kTokens; ++t) (kOdd ? odd : even)[t] = fma(w, splat(x[t] + k), (kOdd ? odd : even)[t]);
  }
  void fold() {
    for (int t = 0; t < kTokens; ++t) {
      total[t] = add(total[t], add(even[t], odd[t]));
      even[t] = odd[t] = zero_f();
    }
  }
  void fold(F scale) {  // both chains have summed unscaled codes
    for (int t = 0; t < kTokens; ++t) {
      total[t] = fma(add(even[t], odd[t]), scale, total[t]);
      even[t] = odd[t] = zero_f();
    }
  }
  void fold(F even_scale, F odd_scale) {
    for (int t = 0; t < kTokens; ++t) {
      total[t] = fma(odd[t], odd_scale, fma(even[t], even_scale, total[t]));
      even[t] = odd[t] = zero_f();
    }
  }
};

// --- the GGUF types: decoded per unit ---

// What a nibble stands for before scaling, as floats.
inline Table nibble_values(int bias) {
  alignas(64) float values[16];
  for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(i - bias);
  return table(values);
}

// A nibble block for fp32 activations, not folded: value(code) gives the weights.
template <int kTokens, class Value>
inline void nibbles_fp32(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s, const Table& codes, Value value) {
  for (int j = 0; j < 4; ++j) {
    const I v = load_i(at + 64 * j);
    const int64_t low = k + 4 * j, high = k + 16 + 4 * j;
    s.template take<false>(value(look_up(codes, v)), low);
    s.template take<true>(value(look_up(codes, srl<4>(v))), high);
    s.template take<false>(value(look_up(codes, srl<8>(v))), low + 1);
    s.template take<true>(value(look_up(codes, srl<12>(v))), high + 1);
    s.template take<false>(value(look_up(codes, srl<16>(v))), low + 2);
    s.template take<true>(value(look_up(codes, srl<20>(v))), high + 2);
    s.template take<false>(value(look_up(codes, srl<24>(v))), low + 3);
    s.template take<true>(value(look_up(codes, srl<28>(v))), high + 3);
  }
}
// Eight vectors of four int8 columns each, not folded: the even chain has columns 0 .. 15, the odd chain 16 .. 31, both times 2^24,
// because the codes come at the top of a dword; value() may make weights of them.
template <int kTokens, class Decode, class Value>
inline void bytes_fp32(int64_t k, Fp32Sums<kTokens>& s, Decode decode, Value value) {
  for (int j = 0; j < 4; ++j) {
    const I near = decode(j), far = decode(j + 4);
    const int64_t at = k + 4 * j;
    s.template take<false>(value(to_float(top_byte<0>(near))), at);
    s.template take<true>(value(to_float(top_byte<0>(far))), at + 16);
    s.template take<false>(value(to_float(top_byte<1>(near))), at + 1);
    s.template take<true>(value(to_float(top_byte<1>(far))), at + 17);
    s.template take<false>(value(to_float(top_byte<2>(near))), at + 2);
    s.template take<true>(value(to_float(top_byte<2>(far))), at + 18);
    s.template take<false>(value(to_float(top_byte<3>(near))), at + 3);
    s.template take<true>(value(to_float(top_byte<3>(far))), at + 19);
  }
}
template <int kTokens, class Decode>
inline void bytes_fp32(int64_t k, Fp32Sums<kTokens>& s, Decode decode) {
  bytes_fp32(k, s, decode, [](F code) { return code; });
}
constexpr float kFromTop = 0x1p-24f, kHalfOfCodes = 128, kE4m3 = 0x1p120f;
inline F by_two_to_minus_24(F d) { return mul(d, splat(&kFromTop)); }

struct Q40Kernel {
  static constexpr Unit kUnit = kQ40Unit;
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Int8Sums<kTokens>& s) {
    for (int b = 0; b < blocks; ++b) {
      s.template nibbles<true, false>(at + b * 256, k / 32 + b, load_half(at + 512 + b * 32), zero_f());
    }
  }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Fp32Sums<kTokens>& s) {
    const Table codes = nibble_values(8);
    for (int b = 0; b < blocks; ++b) {
      nibbles_fp32(at + b * 256, k + b * 32, s, codes, [](F q) { return q; });
      s.fold(load_half(at + 512 + b * 32));
    }
  }
  template <int kTokens>
  static F result(const Int8Sums<kTokens>& s, int t) {
    return s.template result<false>(t);
  }
};

struct Q41Kernel {
  static constexpr Unit kUnit = kQ41Unit;
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Int8Sums<kTokens>& s) {
    for (int b = 0; b < blocks; ++b) {
      s.template nibbles<false, true>(at + b * 256, k / 32 + b, load_half(at + 512 + b * 32), load_half(at + 576 + b * 32));
    }
  }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Fp32Sums<kTokens>& s) {
    const Table codes = nibble_values(0);
    for (int b = 0; b < blocks; ++b) {
      const F d = load_half(at + 512 + b * 32), m = load_half(at + 576 + b * 32);
      nibbles_fp32(at + b * 256, k + b * 32, s, codes, [&](F q) { return fma(q, d, m); });  // q * d is exact
      s.fold();
    }
  }
  template <int kTokens>
  static F result(const Int8Sums<kTokens>& s, int t) {
    return s.template result<true>(t);
  }
};

struct Q80Kernel {
  static constexpr Unit kUnit = kQ80Unit;
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Int8Sums<kTokens>& s) {
    for (int b = 0; b < blocks; ++b) s.bytes(at + b * 512, k / 32 + b, load_half(at + 1024 + b * 32));
  }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Fp32Sums<kTokens>& s) {
    for (int b = 0; b < blocks; ++b) {
      bytes_fp32(k + b * 32, s, [&](int j) { return load_i(at + b * 512 + j * 64); });
      s.fold(by_two_to_minus_24(load_half(at + 1024 + b * 32)));
    }
  }
  template <int kTokens>
  static F result(const Int8Sums<kTokens>& s, int t) {
    return s.template result<false>(t);
  }
};

struct Q4kKernel {
  static constexpr Unit kUnit = kQ4kUnit;
  // The six-bit scales and minimums of sub-blocks 0..3 and 4..7, a byte each.
  struct Scales {
    I scale[2], minimum[2];
    F d, dmin;
    explicit Scales(const std::byte* at) {
      const I s0 = load_i(at + kQ4kScales), s1 = load_i(at + kQ4kScales + 64), s2 = load_i(at + kQ4kScales + 128);
      const I six = set(0x3f3f3f3f), four = set(0x0f0f0f0f), top = set(0x30303030);
      scale[0] = and_(s0, six);
      minimum[0] = and_(s1, six);
      scale[1] = or_(and_(s2, four), and_(srl<2>(s0), top));
      minimum[1] = or_(and_(srl<4>(s2), four), and_(srl<2>(s1), top));
      d = load_half(at + kQ4kD);
      dmin = load_half(at + kQ4kD + 32);
    }
    F scaled(int b) const { return mul(d, to_float(and_(srl(scale[b / 4], b % 4 * 8), set(0xff)))); }
    F least(int b) const { return mul(dmin, to_float(and_(srl(minimum[b / 4], b % 4 * 8), set(0xff)))); }
  };
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Int8Sums<kTokens>& s) {
    const Scales scales(at);
    for (int b = 0; b < blocks; ++b) s.template nibbles<false, true>(at + b * 256, k / 32 + b, scales.scaled(b), scales.least(b));
  }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Fp32Sums<kTokens>& s) {
    const Scales scales(at);
    const Table codes = nibble_values(0);
    for (int b = 0; b < blocks; ++b) {
      const F d = scales.scaled(b), m = scales.least(b);
      nibbles_fp32(at + b * 256, k + b * 32, s, codes, [&](F q) { return fms(q, d, m); });
      s.fold();
    }
  }
  template <int kTokens>
  static F result(const Int8Sums<kTokens>& s, int t) {
    return s.template result<true, true>(t);
  }
};

struct Q6kKernel {
  static constexpr Unit kUnit = kQ6kUnit;
  static void decode(const std::byte* at, int b, I (&w)[8]) {
    const I low = set(0x0f0f0f0f), top = set(0x30303030);
    const I near = load_i(at + kQ6kHigh + b * 128), far = load_i(at + kQ6kHigh + b * 128 + 64);
    const I near_bits[4] = {sll<4>(near), sll<2>(near), near, srl<2>(near)}, far_bits[4] = {sll<4>(far), sll<2>(far), far, srl<2>(far)};
    for (int j = 0; j < 4; ++j) {
      const I v = load_i(at + b * 256 + j * 64);
      w[j] = or_(and_(v, low), and_(near_bits[j], top));
      w[j + 4] = or_(and_(srl<4>(v), low), and_(far_bits[j], top));
    }
  }
  static F scaled(const std::byte* at, F d, int half) { return mul(d, to_float(bytes_s(at + kQ6kScales + half * 16))); }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Int8Sums<kTokens>& s) {
    const F d = load_half(at + kQ6kD);
    for (int b = 0; b < blocks; ++b) {
      I w[8];
      decode(at, b, w);
      s.six_bits(w, k / 32 + b, scaled(at, d, 2 * b), scaled(at, d, 2 * b + 1));
    }
  }
  template <int kTokens>
  static void unit(const std::byte* at, int64_t k, int blocks, Fp32Sums<kTokens>& s) {
    const F d = load_half(at + kQ6kD);
    for (int b = 0; b < blocks; ++b) {
      I w[8];
      decode(at, b, w);
      bytes_fp32(k + b * 32, s, [&](int j) { return less_32(w[j]); });
      s.fold(by_two_to_minus_24(scaled(at, d, 2 * b)), by_two_to_minus_24(scaled(at, d, 2 * b + 1)));
    }
  }
  template <int kTokens>
  static F result(const Int8Sums<kTokens>& s, int t) {
    return s.template result<false>(t);
  }
};

// --- the loops around them ---

// Token counts are cut into groups of kMaxTokens, then halves: body(count constant, first token).
template <int kTokens, class Body>
inline void by_tokens(int64_t begin, int64_t end, const Body& body) {
  for (; begin + kTokens <= end; begin += kTokens) body(std::integral_constant<int, kTokens>{}, begin);
  if constexpr (kTokens > 1) by_tokens<kTokens / 2>(begin, end, body);
}
// How many tokens to take over all tiles before the next ones: their activations should stay in the second-level cache.
inline int64_t token_chunk(int64_t bytes_a_token) {
  return std::max<int64_t>(kMaxTokens, (512 << 10) / std::max<int64_t>(bytes_a_token, 1) / 8 * 8);
}

// body(count constant, first token, tile): the products of `count` tokens with one tile.
template <class Tile>
inline void for_tiles(int64_t tokens, int64_t bytes_a_token, int64_t tile_begin, int64_t tile_end, const Tile& body) {
  const int64_t chunk = token_chunk(bytes_a_token);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(tokens, begin + chunk);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      by_tokens<kMaxTokens>(begin, end, [&](auto count, int64_t token) { body(count, token, tile); });
    }
  }
}

// The same for fp32 activations: body(sums, tile, first column, end). Of many tokens only so many columns are taken at once that
// eight rows of activations fit the nearest cache; the sums wait in y, as exact there as in registers. `step`: where K may be cut, a
// multiple of 32.
template <class Tile>
inline void for_panels(const Input& x, int64_t tokens, int64_t rows, int64_t cols, int64_t step, int64_t tile_begin, int64_t tile_end,
                       float* y, int64_t y_stride, const Tile& body) {
  constexpr int64_t kPanel = 1024;
  const int64_t width = tokens > kMaxTokens ? std::max<int64_t>(step, kPanel / step * step) : cols;
  const int64_t chunk = token_chunk(std::min(width, cols) * 4);
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t last = std::min(tokens, first + chunk);
    for (int64_t k = 0; k == 0 || k < cols; k += width) {
      const int64_t end = std::min(cols, k + width);
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const auto lanes = static_cast<int>(std::min<int64_t>(kTile, rows - tile * kTile));
        by_tokens<kMaxTokens>(first, last, [&](auto count, int64_t token) {
          float* out = y + token * y_stride + tile * kTile;
          Fp32Sums<count> sums(x, token);
          if (k > 0) {
            for (int t = 0; t < count; ++t) sums.total[t] = load_some(out + t * y_stride, lanes);
          }
          body(sums, tile, k, end);
          for (int t = 0; t < count; ++t) store(out + t * y_stride, sums.total[t], lanes);
        });
      }
    }
  }
}

template <class K>
LINEAR_FLATTEN void multiply_int8(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens, int64_t tile_begin,
                                  int64_t tile_end, float* y, int64_t y_stride) {
  const int64_t bytes = tile_bytes(K::kUnit, cols);
  for_tiles(tokens, int8_blocks(cols) * 48, tile_begin, tile_end, [&](auto count, int64_t token, int64_t tile) {
    Int8Sums<count> sums(x.int8, token);
    const std::byte* at = resident + tile * bytes;
    int64_t k = 0;
    for (; k + K::kUnit.cols <= cols; k += K::kUnit.cols, at += K::kUnit.bytes) {
      prefetch<K::kUnit.bytes>(at);
      K::unit(at, k, K::kUnit.cols / 32, sums);
    }
    if (k < cols) K::unit(at, k, static_cast<int>((cols - k) / 32), sums);
    const auto lanes = static_cast<int>(std::min<int64_t>(kTile, rows - tile * kTile));
    for (int t = 0; t < count; ++t) store(y + (token + t) * y_stride + tile * kTile, K::result(sums, t), lanes);
  });
}

template <class K>
LINEAR_FLATTEN void multiply_fp32(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens, int64_t tile_begin,
                                  int64_t tile_end, float* y, int64_t y_stride) {
  const int64_t bytes = tile_bytes(K::kUnit, cols);
  for_panels(x, tokens, rows, cols, K::kUnit.cols, tile_begin, tile_end, y, y_stride,
             [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
               const std::byte* at = resident + tile * bytes + k / K::kUnit.cols * K::kUnit.bytes;
               for (; k + K::kUnit.cols <= end; k += K::kUnit.cols, at += K::kUnit.bytes) {
                 prefetch<K::kUnit.bytes>(at);
                 K::unit(at, k, K::kUnit.cols / 32, sums);
               }
               if (k < end) K::unit(at, k, static_cast<int>((end - k) / 32), sums);
             });
}

// --- dense ---

struct DenseFp32 {
  static constexpr int64_t kBytes = 64;  // a column of a tile
  static int64_t tile(int64_t cols) { return cols * kTile * 4; }
  template <int kTokens>
  static void two(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    s.template take<false>(load_f(at + k * 64), k);
    s.template take<true>(load_f(at + k * 64 + 64), k + 1);
  }
  template <int kTokens>
  static void one(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    s.template take<false>(load_f(at + k * 64), k);
  }
};
struct DenseFp16 {
  static constexpr int64_t kBytes = 32;
  static int64_t tile(int64_t cols) { return round_up(cols, 2) * kTile * 2; }
  template <int kTokens>
  static void two(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    s.template take<false>(load_half(at + k * 32), k);
    s.template take<true>(load_half(at + k * 32 + 32), k + 1);
  }
  template <int kTokens>
  static void one(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    s.template take<false>(load_half(at + k * 32), k);
  }
};
struct DenseBf16 {
  static constexpr int64_t kBytes = 32;
  static int64_t tile(int64_t cols) { return round_up(cols, 2) * kTile * 2; }
  template <int kTokens>
  static void two(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    const I v = load_i(at + k * 32);
    s.template take<false>(as_float(sll<16>(v)), k);
    s.template take<true>(as_float(and_(v, set(static_cast<int>(0xffff0000)))), k + 1);
  }
  template <int kTokens>
  static void one(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s) {
    s.template take<false>(as_float(sll<16>(load_i(at + k * 32))), k);
  }
};

template <class K>
LINEAR_FLATTEN void multiply_dense(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                   int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  for_panels(x, tokens, rows, cols, 32, tile_begin, tile_end, y, y_stride, [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
    const std::byte* at = resident + tile * K::tile(cols);
    for (; k + 32 <= end; k += 32) {
      prefetch<K::kBytes * 32>(at + k * K::kBytes);
#pragma GCC unroll 4
      for (int i = 0; i < 32; i += 2) K::two(at, k + i, sums);
      sums.fold();
    }
    if (k == end) return;
    for (; k + 2 <= end; k += 2) K::two(at, k, sums);
    if (k < end) K::one(at, k, sums);
    sums.fold();
  });
}

// --- int8 rows: one scale a row, so that it comes in at the very end ---

LINEAR_FLATTEN void multiply_rows_int8(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                       int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  const int64_t bytes = int8_tile(cols), blocks = int8_blocks(cols);
  for_tiles(tokens, blocks * 48, tile_begin, tile_end, [&](auto count, int64_t token, int64_t tile) {
    Int8Sums<count> sums(x.int8, token);
    const std::byte* at = resident + tile * bytes;
    const F d = mul(load_f(at), splat(&kInt8Step));
    at += 64;
    for (int64_t b = 0; b < blocks; ++b, at += 512) {
      prefetch<512>(at);
      sums.bytes(at, b, d);
    }
    const auto lanes = static_cast<int>(std::min<int64_t>(kTile, rows - tile * kTile));
    for (int t = 0; t < count; ++t) store(y + (token + t) * y_stride + tile * kTile, sums.template result<false>(t), lanes);
  });
}

inline I top_byte(I v, int64_t n) { return n == 0 ? top_byte<0>(v) : n == 1 ? top_byte<1>(v) : n == 2 ? top_byte<2>(v) : top_byte<3>(v); }

LINEAR_FLATTEN void multiply_rows_fp32(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                       int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  for_panels(x, tokens, rows, cols, 32, tile_begin, tile_end, y, y_stride, [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
    const std::byte* row_max = resident + tile * int8_tile(cols);
    const std::byte* at = row_max + 64;
    const F back = splat(&kFromTop);
    for (; k + 32 <= end; k += 32) {
      prefetch<512>(at + k * kTile);
      bytes_fp32(k, sums, [&](int j) { return load_i(at + k * kTile + j * 64); });
      sums.fold(back);
    }
    for (; k < end; ++k) {
      sums.template take<false>(to_float(top_byte(load_i(at + k / 4 * 64), k % 4)), k);
      sums.fold(back);
    }
    if (end < cols) return;
    for (F& total : sums.total) total = mul(mul(total, load_f(row_max)), splat(&kInt8Step));  // rounded twice, as int8_value() is
  });
}

// --- codes of 4 or 8 bits in groups: scale * code - shift ---

template <int kBits>
LINEAR_FLATTEN void multiply_group_int8(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                        int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  constexpr int64_t kBlock = 32 * kTile * kBits / 8;
  const int64_t group = reinterpret_cast<const GroupHeader*>(resident)->group, bytes = group_bytes(kBits, group), codes = bytes - 128;
  for_tiles(tokens, int8_blocks(cols) * 48, tile_begin, tile_end, [&](auto count, int64_t token, int64_t tile) {
    Int8Sums<count> sums(x.int8, token);
    const std::byte* at = resident + sizeof(GroupHeader) + tile * (cols / group) * bytes;
    for (int64_t k = 0; k < cols; at += bytes) {
      const F scale = load_f(at + codes), shift = load_f(at + codes + 64);
      // Of 8 bits the codes are less 128.
      const F least = kBits == 4 ? shift : fms(scale, splat(&kHalfOfCodes), shift);
      for (int64_t b = 0; b < codes; b += kBlock, k += 32) {
        prefetch<kBlock>(at + b);
        if constexpr (kBits == 4) {
          sums.template nibbles<false, true>(at + b, k / 32, scale, least);
        } else {
          sums.bytes(at + b, k / 32, scale);
          for (int t = 0; t < count; ++t) sums.minimums[t] = fma(least, splat(&sums.x[t][k / 32].sum), sums.minimums[t]);
        }
      }
    }
    const auto lanes = static_cast<int>(std::min<int64_t>(kTile, rows - tile * kTile));
    for (int t = 0; t < count; ++t) store(y + (token + t) * y_stride + tile * kTile, sums.template result<true, kBits == 4>(t), lanes);
  });
}

template <int kBits>
LINEAR_FLATTEN void multiply_group_fp32(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                        int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  constexpr int64_t kBlock = 32 * kTile * kBits / 8;
  const int64_t group = reinterpret_cast<const GroupHeader*>(resident)->group, bytes = group_bytes(kBits, group), codes = bytes - 128;
  const Table values = nibble_values(0);
  for_panels(x, tokens, rows, cols, group, tile_begin, tile_end, y, y_stride, [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
    const std::byte* at = resident + sizeof(GroupHeader) + (tile * (cols / group) + k / group) * bytes;
    for (; k < end; at += bytes) {
      const F scale = load_f(at + codes), shift = load_f(at + codes + 64);
      const auto value = [&](F code) { return sub(round_here(mul(code, scale)), shift); };  // two roundings
      for (int64_t b = 0; b < codes; b += kBlock, k += 32) {
        prefetch<kBlock>(at + b);
        if constexpr (kBits == 4) {
          nibbles_fp32(at + b, k, sums, values, value);
        } else {
          bytes_fp32(
              k, sums, [&](int j) { return load_i(at + b + j * 64); },
              [&](F top) { return value(fma(top, splat(&kFromTop), splat(&kHalfOfCodes))); });
        }
        sums.fold();
      }
    }
  });
}

// --- fp8 ---

// E4M3 at the top of a dword: its seven bits of magnitude, put where a float has its exponent and mantissa, are the number times 2^-120,
// subnormal ones too. A code that is no number is one here (480), and its scale says so.
inline F e4m3(I top) {
  const I magnitude = srl<4>(and_(top, set(0x7f000000)));
  return mul(as_float(or_(magnitude, and_(top, set(static_cast<int>(0x80000000))))), splat(&kE4m3));
}

LINEAR_FLATTEN void multiply_fp8(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens, int64_t tile_begin,
                                 int64_t tile_end, float* y, int64_t y_stride) {
  const int shift = reinterpret_cast<const Fp8Header*>(resident)->shift;
  const int64_t scale_bytes = fp8_scale_bytes(shift, cols), bytes = scale_bytes + round_up(cols, 32) * kTile;
  for_panels(x, tokens, rows, cols, 32, tile_begin, tile_end, y, y_stride, [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
    const std::byte* scales = resident + sizeof(Fp8Header) + tile * bytes;
    const std::byte* at = scales + scale_bytes;
    const auto top = [&](int64_t column) { return top_byte(load_i(at + column / 4 * 64), column % 4); };
    for (; k + 32 <= end; k += 32) {
      prefetch<512>(at + k * kTile);
      for (int j = 0; j < 4; ++j) {
        const I near = load_i(at + k * kTile + j * 64), far = load_i(at + k * kTile + j * 64 + 256);
        const int64_t column = k + 4 * j;
        sums.template take<false>(e4m3(sll<24>(near)), column);
        sums.template take<true>(e4m3(sll<24>(far)), column + 16);
        sums.template take<false>(e4m3(sll<16>(near)), column + 1);
        sums.template take<true>(e4m3(sll<16>(far)), column + 17);
        sums.template take<false>(e4m3(sll<8>(near)), column + 2);
        sums.template take<true>(e4m3(sll<8>(far)), column + 18);
        sums.template take<false>(e4m3(near), column + 3);
        sums.template take<true>(e4m3(far), column + 19);
      }
      sums.fold(load_f(scales + (k >> shift) * 64));
    }
    if (k == end) return;
    const F scale = load_f(scales + (k >> shift) * 64);
    for (; k < end; ++k) sums.template take<false>(e4m3(top(k)), k);
    sums.fold(scale);
  });
}

// --- NF4 and FP4 ---

// Eight columns a lane as bitsandbytes stores them: the earlier of two in the high half of a byte.
template <int kTokens>
inline void eight_columns(const std::byte* at, int64_t k, Fp32Sums<kTokens>& s, const Table& codes) {
  const I v = load_i(at);
  s.template take<false>(look_up(codes, srl<4>(v)), k);
  s.template take<true>(look_up(codes, v), k + 1);
  s.template take<false>(look_up(codes, srl<12>(v)), k + 2);
  s.template take<true>(look_up(codes, srl<8>(v)), k + 3);
  s.template take<false>(look_up(codes, srl<20>(v)), k + 4);
  s.template take<true>(look_up(codes, srl<16>(v)), k + 5);
  s.template take<false>(look_up(codes, srl<28>(v)), k + 6);
  s.template take<true>(look_up(codes, srl<24>(v)), k + 7);
}
template <int kTokens>
inline void four_bit_block(const std::byte* at, int64_t k, int64_t block, Fp32Sums<kTokens>& s, const Table& codes, F absmax) {
  if (block >= 32) {
    for (int64_t i = 0; i < block; i += 32) {
      prefetch<256>(at + i * 8);
      for (int j = 0; j < 4; ++j) eight_columns(at + (i / 8 + j) * 64, k + i + j * 8, s, codes);
      s.fold(absmax);
    }
    return;
  }
  for (int64_t i = 0; i < block; i += 8) eight_columns(at + i / 8 * 64, k + i, s, codes);
  s.fold(absmax);
}

template <bool kNested>
LINEAR_FLATTEN void multiply_four_bit(const std::byte* resident, int64_t rows, int64_t cols, const Input& x, int64_t tokens,
                                      int64_t tile_begin, int64_t tile_end, float* y, int64_t y_stride) {
  const auto& header = *reinterpret_cast<const FourBitHeader*>(resident);
  const std::byte* tiles = resident + (kNested ? kNestedHeader : kFourBitHeader);
  const int64_t block = header.block;
  if (block == 0) return multiply_dense<DenseFp32>(tiles, rows, cols, x, tokens, tile_begin, tile_end, y, y_stride);
  const Table codes = table(header.map);
  const int64_t step = std::max<int64_t>(block, 32);  // a narrower block divides 32, and cols
  for_panels(x, tokens, rows, cols, step, tile_begin, tile_end, y, y_stride, [&](auto& sums, int64_t tile, int64_t k, int64_t end) {
    const std::byte* at = tiles + tile * header.tile_bytes;
    if constexpr (kNested) {
      const std::byte* scales = at + cols * kTile / 2;
      const std::byte* starts = scales + round_up(cols / block * kTile, 64);
      const auto* nested = reinterpret_cast<const float*>(starts + 64);
      const I lane = lanes_i(), start = load_i(starts);
      const F offset = splat(&header.offset);
      I group = srl(add_i(start, set(static_cast<int>(k))), header.shift);
      F nested_absmax = gather(nested, add_i(sll<4>(group), lane));
      for (; k < end; k += block) {
        const I here = srl(add_i(start, set(static_cast<int>(k))), header.shift);
        if (differ(here, group)) {  // once in 256 blocks for each row
          group = here;
          nested_absmax = gather(nested, add_i(sll<4>(group), lane));
        }
        const F product = mul(look_up_256(header.nested_map, bytes_u(scales + k / block * kTile)), nested_absmax);
        four_bit_block(at + k * 8, k, block, sums, codes, add(round_here(product), offset));  // two roundings
      }
    } else {
      at += k / block * (block * 8 + 64);
      for (; k < end; k += block, at += block * 8 + 64) four_bit_block(at, k, block, sums, codes, load_f(at + block * 8));
    }
  });
}

// --- activations ---

void quantize_row_here(const float* x, int64_t cols, Int8Block* out) {
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32) quantize_32(x + k, out++);
  if (k < cols) quantize_block(x + k, cols - k, out);
}

// --- the table ---

inline LinearKernel entry(const char* name, std::string_view format, Activations activations, const Layout& layout,
                          decltype(LinearKernel::multiply) multiply) {
  return {name, format, activations, kTile, layout.resident, layout.pack, multiply, layout.row};
}
#define TANDEM_KERNELS(isa)                                                                                       \
  {                                                                                                               \
    entry("q4_0_int8_" isa, "q4_0", Activations::int8, kQ40Layout, multiply_int8<Q40Kernel>),                     \
        entry("q4_1_int8_" isa, "q4_1", Activations::int8, kQ41Layout, multiply_int8<Q41Kernel>),                 \
        entry("q8_0_int8_" isa, "q8_0", Activations::int8, kQ80Layout, multiply_int8<Q80Kernel>),                 \
        entry("q4_k_int8_" isa, "q4_k", Activations::int8, kQ4kLayout, multiply_int8<Q4kKernel>),                 \
        entry("q6_k_int8_" isa, "q6_k", Activations::int8, kQ6kLayout, multiply_int8<Q6kKernel>),                 \
        entry("q4_0_fp32_" isa, "q4_0", Activations::fp32, kQ40Layout, multiply_fp32<Q40Kernel>),                 \
        entry("q4_1_fp32_" isa, "q4_1", Activations::fp32, kQ41Layout, multiply_fp32<Q41Kernel>),                 \
        entry("q8_0_fp32_" isa, "q8_0", Activations::fp32, kQ80Layout, multiply_fp32<Q80Kernel>),                 \
        entry("q4_k_fp32_" isa, "q4_k", Activations::fp32, kQ4kLayout, multiply_fp32<Q4kKernel>),                 \
        entry("q6_k_fp32_" isa, "q6_k", Activations::fp32, kQ6kLayout, multiply_fp32<Q6kKernel>),                 \
        entry("fp32_fp32_" isa, "fp32", Activations::fp32, kFp32Layout, multiply_dense<DenseFp32>),               \
        entry("bf16_fp32_" isa, "bf16", Activations::fp32, kBf16Layout, multiply_dense<DenseBf16>),               \
        entry("fp16_fp32_" isa, "fp16", Activations::fp32, kFp16Layout, multiply_dense<DenseFp16>),               \
        entry("int8_int8_" isa, "int8", Activations::int8, kInt8Layout, multiply_rows_int8),                      \
        entry("int4_int8_" isa, "int4", Activations::int8, kInt4GroupLayout, multiply_group_int8<4>),             \
        entry("int4_fp32_" isa, "int4", Activations::fp32, kInt4GroupLayout, multiply_group_fp32<4>),             \
        entry("int8_group_int8_" isa, "int8_group", Activations::int8, kInt8GroupLayout, multiply_group_int8<8>), \
        entry("int8_group_fp32_" isa, "int8_group", Activations::fp32, kInt8GroupLayout, multiply_group_fp32<8>), \
        entry("fp8_fp32_" isa, "fp8", Activations::fp32, kFp8Layout, multiply_fp8),                               \
        entry("fp8_tensor_fp32_" isa, "fp8_tensor", Activations::fp32, kFp8Layout, multiply_fp8),                 \
        entry("int8_fp32_" isa, "int8", Activations::fp32, kInt8Layout, multiply_rows_fp32),                      \
        entry("nf4_fp32_" isa, "nf4", Activations::fp32, kFourBitLayout, multiply_four_bit<false>),               \
        entry("fp4_fp32_" isa, "fp4", Activations::fp32, kFourBitLayout, multiply_four_bit<false>),               \
        entry("nf4_dq_fp32_" isa, "nf4_dq", Activations::fp32, kNestedLayout, multiply_four_bit<true>),           \
        entry("fp4_dq_fp32_" isa, "fp4_dq", Activations::fp32, kNestedLayout, multiply_four_bit<true>),           \
        entry("any_fp32_" isa, "", Activations::fp32, kWidenedLayout, multiply_dense<DenseFp32>)                  \
  }
template <size_t n>
std::array<const LinearKernel*, n> pointers(const LinearKernel (&kernels)[n]) {
  std::array<const LinearKernel*, n> list;
  for (size_t i = 0; i < n; ++i) list[i] = &kernels[i];
  return list;
}
