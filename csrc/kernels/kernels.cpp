// The only source that is compiled once per instruction set; GRADSTEP_ISA is its name. The object
// exports one constant table and nothing else (a test asks nm).
#include "kernels/activations.h"
#include "kernels/dropout.h"
#include "kernels/few_rows.h"
#include "kernels/lanes.h"
#include "kernels/losses.h"
#include "kernels/normalize.h"
#include "kernels/optimizers.h"
#include "kernels/pack.h"
#include "kernels/product.h"
#include "kernels/sparse.h"
#include "kernels/table.h"

#define GRADSTEP_JOIN(a, b) a##b
#define GRADSTEP_TABLE(isa) GRADSTEP_JOIN(kernels_, isa)
#define GRADSTEP_TEXT(isa) GRADSTEP_QUOTE(isa)
#define GRADSTEP_QUOTE(text) #text

namespace {

template <class T, int N>
constexpr int count(const T (&)[N]) {
    return N;
}

template <class T>
constexpr gradstep::Kernels<T> kernels_of() {
    return {
        .lanes = kLanes<T>,
        .product = {&product_panel<T, 1>, &product_panel<T, 2>},
        .product_transposed = {&product_transposed_panel<T, 1>, &product_transposed_panel<T, 2>},
        .product_few_rows = {&product_few_rows<T, 1>, &product_few_rows<T, 2>},
        .lanes_forward = &lanes_forward<T>,
        .lanes_backward = &lanes_backward<T>,
        .sum_vectors = &sum_vectors<T>,
        .column_sums = {&column_sums<T, 1>, &column_sums<T, 2>},
        .transpose_block = {&transpose_block<T, 1>, &transpose_block<T, 2>},
        .gather_panels = {&gather_panels<T, 1>, &gather_panels<T, 2>},
        .gather_lanes = &gather_lanes<T>,
        .panels_to_lanes = {&panels_to_lanes<T, 1>, &panels_to_lanes<T, 2>},
        .lanes_to_panels = {&lanes_to_panels<T, 1>, &lanes_to_panels<T, 2>},
        .sparse_forward = {&sparse_forward<T, 1>, &sparse_forward<T, 2>},
        .sparse_gradient = {&sparse_gradient<T, 1>, &sparse_gradient<T, 2>},
        .drop = {&drop_panel<T, 1>, &drop_panel<T, 2>},
        .drop_backward = &drop_backward<T>,
        .affine = {&affine_panel<T, 1>, &affine_panel<T, 2>},
        .affine_sums = {&affine_sums<T, 1>, &affine_sums<T, 2>},
        .add = &add_panels<T>,
        .normalize_rows = {&normalize_rows<T, 1>, &normalize_rows<T, 2>},
        .normalize_rows_backward = {&normalize_rows_backward<T, 1>, &normalize_rows_backward<T, 2>},
        .normalize_columns = {&normalize_columns<T, 1>, &normalize_columns<T, 2>},
        .normalize_columns_backward = {&normalize_columns_backward<T, 1>, &normalize_columns_backward<T, 2>},
        .sum_squares = &sum_squares<T>,
        .all_finite = &all_finite<T>,
        .squares_finite = &squares_finite<T>,
        .fma_peak = &fma_peak<T>,
        .activations = kActivations<T>,
        .n_activations = count(kActivations<T>),
        .losses = kLosses<T>,
        .n_losses = count(kLosses<T>),
        .optimizers = kOptimizers<T>,
        .n_optimizers = count(kOptimizers<T>),
    };
}

}  // namespace

namespace gradstep {

constexpr KernelTable GRADSTEP_TABLE(GRADSTEP_ISA) = {GRADSTEP_TEXT(GRADSTEP_ISA), kernels_of<float>(),
                                                      kernels_of<double>()};

}  // namespace gradstep
