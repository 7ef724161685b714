// Reads the small float32 NumPy files of the fixtures.
#pragma once
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace tandem::testing {

struct Npy { int64_t rows = 0, cols = 0; std::vector<float> values; };

inline Npy read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0) throw std::runtime_error(path + " is no NumPy file");
  const size_t header = 10 + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  const std::string text = bytes.substr(10, header - 10);
  if (text.find("'<f4'") == std::string::npos || text.find("'fortran_order': False") == std::string::npos) throw std::runtime_error(path + " is not float32 in C order");
  const size_t open = text.find('(');
  Npy array;
  size_t used = 0;
  array.rows = std::stoll(text.substr(open + 1), &used);
  const std::string rest = text.substr(open + 1 + used + 1);
  array.cols = rest.find_first_of("0123456789") < rest.find(')') ? std::stoll(rest) : 1;
  array.values.resize((bytes.size() - header) / sizeof(float));
  std::memcpy(array.values.data(), bytes.data() + header, array.values.size() * sizeof(float));
  if (static_cast<int64_t>(array.values.size()) != array.rows * array.cols) throw std::runtime_error(path + " has another size than its header says");
  return array;
}

}  // namespace tandem::testing
