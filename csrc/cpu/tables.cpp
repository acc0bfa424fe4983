#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"

namespace stochprune {

uint16_t exact_threshold(double logit) {
  const double t = std::floor(32768.0 / (1.0 + std::exp(-logit)) + 0.5);
  return t > 32767.0 ? 32767 : t < 1.0 ? 1 : uint16_t(t);
}

namespace {

float smallest_float_reaching(int t) {
  // The threshold is a monotone step function of the logit: start at its inverse, then walk to the exact float.
  const double p = (t - 0.5) / 32768.0;
  float x = float(std::log(p) - std::log1p(-p));
  const float inf = std::numeric_limits<float>::infinity();
  while (exact_threshold(x) >= t) x = std::nextafter(x, -inf);
  while (exact_threshold(x) < t) x = std::nextafter(x, inf);
  return x;
}

}  // namespace

const Tables& tables() {
  static const std::vector<float> bound = [] {
    std::vector<float> b(32769, std::numeric_limits<float>::infinity());
    b[0] = b[1] = -std::numeric_limits<float>::infinity();  // thresholds are clamped to 1 .. 32767
    for (int t = 2; t <= 32767; ++t) b[t] = smallest_float_reaching(t);
    return b;
  }();
  static const std::vector<float> logit = [] {
    std::vector<float> l(32768);
    for (int u = 0; u < 32768; ++u) {
      const double v = (u + 0.5) / 32768.0;
      l[u] = float(std::log(v) - std::log1p(-v));
    }
    return l;
  }();
  static const Tables t{bound.data(), logit.data()};
  return t;
}

}  // namespace stochprune
