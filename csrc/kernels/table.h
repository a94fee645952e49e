// The kernels of one instruction set, as a table of functions. This is all that the engine sees.
//
// Contract of every kernel, stated once:
// - Pointers named c, to, a (out), delta, theta and the states do not alias the inputs unless the entry
//   says so. Buffers hold whole vectors: lengths in elements are multiples of `lanes`, and a row
//   count may be rounded up to `lanes` rows when reading or writing a buffer.
// - Buffers are 64-byte aligned; X, y and weight of the user may have any alignment.
// - No kernel allocates, throws, or keeps state.
//
// Letters: B rows of a batch, I inputs, O outputs, P panel width (lanes x vectors).
// Panels hold a (B, F) matrix as [ceil(F/P)][stride][P]; lanes hold it transposed as [F][stride].
#pragma once
#include <cstddef>
#include <cstdint>

namespace gradstep {

constexpr int kMostStates = 3;  // of an optimizer

enum class Init { zero, bias, keep };

// What a step consists of.
enum class Phase { gather, forward, loss, input_gradient, weight_gradient, update };
constexpr int kPhases = 6;

// Someone who wants to know when a phase ends.
struct Laps {
    void (*end)(Laps* self, Phase phase) noexcept;
};

// C (rows x width) = init + A (rows x depth) B (depth x width), vectors from B, scalars from A.
// With A in row panels the depth runs in segments of P: after each, a and b go on by a_segment and b_segment, and the
// block to be fetched by ahead_segment. A transposed A has the depth in one.
template <class T>
struct Product {
    ptrdiff_t rows, depth;
    const T* a;
    ptrdiff_t a_segment;
    const T* b;
    ptrdiff_t b_segment;
    T* c;
    Init init;
    const T* bias;  // Init::bias: one value a column
    // What will be needed next, fetched into the cache in passing: one block of P x P a segment of the depth.
    // Null: nothing. Only with panels of two vectors.
    const T* ahead[2];
    ptrdiff_t ahead_segment;
    bool half;  // only the first of two vectors has columns of its own; the other one becomes zero
};

// Up to so many rows have fewer sums in a panel than multiply-adds that the units work on at a time.
constexpr ptrdiff_t kFewRows = 2;

// C = bias + A B of at most kFewRows rows, A in row panels, over several panels of B and C: their blocks of B lie one
// behind the other in each segment of the depth. A last panel that is half full is computed whole, its pads with
// weights of zero.
template <class T>
struct FewRows {
    ptrdiff_t rows, depth;
    const T* a;
    ptrdiff_t a_segment;
    const T* b;
    ptrdiff_t b_segment;
    T* c;
    ptrdiff_t c_panel;
    const T* bias;
    ptrdiff_t panels;
};

// z and a are the same memory unless needs_z. The identity has null functions.
template <class T>
struct Activation {
    const char* name;
    bool needs_z;  // the derivative is a function of z; otherwise of a alone
    void (*forward)(const T* z, T* a, ptrdiff_t n) noexcept;
    void (*backward)(const T* z, const T* a, T* delta, ptrdiff_t n) noexcept;  // delta *= act'(z)
};

// Operands of a loss, transposed: one row an output, one lane a sample.
template <class T>
struct LossBatch {
    const T* z = nullptr;       // [outputs][stride]: outputs before the link
    const T* y = nullptr;       // [targets][stride], or [1][stride] class numbers
    const T* weight = nullptr;  // [lanes]; 0 in lanes beyond the last sample
    T* delta = nullptr;         // [outputs][stride]: scale * weight * dloss/dz; may be null
    T* link = nullptr;          // [outputs][stride]: predictions, only for `link`; may be z itself
    ptrdiff_t outputs = 0, lanes = 0, stride = 0;
    T scale = T(0);
    const T* option = nullptr;  // [outputs]
};

// Operands of a loss that takes each output by itself: a panel of outputs, and columns of the user's rows.
template <class T>
struct LossPanel {
    const T* z;  // before the link
    const T* y;  // row r is y + r * y_stride, or index[r] in place of r
    const int64_t* index;
    const T* weight;  // one a row, found like y; null: 1
    T* delta;         // scale * weight * dloss/dz, zero in pad columns; may be z
    ptrdiff_t rows, columns, y_stride;
    T scale;
    const T* option;  // [columns]
};

// The last layer of a tiny network, if it has one output, at most kFewInputs inputs and no activation, and a loss that
// takes each output by itself: one pass over the samples, in lanes, forward and backward. More weights, inputs and
// sums would fill 16 registers.
constexpr ptrdiff_t kFewInputs = 4;

template <class T>
struct LanesOutput {
    ptrdiff_t inputs, lanes;
    const T* x;        // [inputs][lanes]
    const T* weights;  // [inputs]
    const T* bias;
    const T* y;       // [lanes]
    const T* weight;  // [lanes]; 0 in lanes beyond the last sample
    T scale;
    const T* option;
    T* below;  // [inputs][lanes]: scale * weight * dloss/dx; null: nobody asks
    // Vectors of partial sums of the gradient: written, or added to when `keep`.
    T* weight_sums;  // [inputs]
    T* bias_sum;
    bool keep;
};

template <class T>
struct Loss {
    const char* name;
    bool takes_labels;  // y holds class numbers
    bool mean_over_outputs;
    int outputs_per_target;
    double (*value)(const LossBatch<T>&) noexcept;  // sum of weight * loss; writes delta if not null
    void (*link)(const LossBatch<T>&) noexcept;     // null: predictions are the outputs themselves
    // The value of a panel of one and of two vectors, where each output is taken by itself: then the link is a function
    // of z alone. Null where the outputs of a sample are taken together.
    double (*panel[2])(const LossPanel<T>&) noexcept;
    double (*lanes_output)(const LanesOutput<T>&) noexcept;  // with its layer and the gradients; null like `panel`
};

template <class T>
struct Hyper {
    T learning_rate, l2, momentum, nesterov, beta1, beta2, epsilon, weight_decay;
    T step_size;          // learning rate / (1 - beta1^t), or nadam's of the moment
    T second_correction;  // 1 / sqrt(1 - beta2^t)
    T gradient_size;      // of nadam: learning rate (1 - mu_t) / (1 - product of mu)
};

template <class T>
struct Hypers {
    Hyper<T> weights, biases;
};

// One slice of parameters, each state state_stride behind the one before it, with its gradient in `parts` buffers,
// part_stride apart, summed in order.
template <class T>
struct UpdateSlice {
    T* theta;
    ptrdiff_t state_stride;
    const T* gradient;
    ptrdiff_t part_stride;
    int parts;
    ptrdiff_t n;
};

template <class T>
struct Optimizer {
    const char* name;
    int states;
    bool squares;  // the states hold squares of gradients
    const char* state_names[kMostStates];
    void (*update)(const UpdateSlice<T>&, const Hyper<T>&) noexcept;
};

// Rows of X to gather: row r is X[index[r]], or X[r] when index is null; (x - shift) * scale per column
// when shift is not null (both padded to whole panels).
template <class T>
struct Gather {
    const T* x;
    const int64_t* index;
    ptrdiff_t rows, columns;
    const T* shift;
    const T* scale;
    T* to;
    ptrdiff_t stride;  // rows of a panel, or lanes of a row
};

// Which mask of a layer's dropout: a pure function of these (random.py).
struct DropKey {
    uint64_t seed;
    uint32_t step, stream;
    uint32_t threshold;  // words below it drop their output
    double factor;       // of those that are kept
};

// Rows of a panel whose first row is number `row` of the batch, first column number `column` of the layer.
template <class T>
struct DropBlock {
    T* a;
    ptrdiff_t rows;
    int64_t row;
    uint32_t column;
    DropKey key;
};

// A panel times a gain and plus a shift a column.
template <class T>
struct Affine {
    ptrdiff_t rows;
    const T* in;
    const T* gain;
    const T* shift;  // null: none
    T* out;
    bool keep;  // adds to out
};

// The gradients of gain and shift, from the errors behind them.
template <class T>
struct AffineSums {
    ptrdiff_t rows;
    const T* in;
    const T* delta;
    T* gain;
    T* shift;  // null: none
    bool keep;
};

// Rows of a layer, normalised over their columns; from `gain` on: for the way back alone.
template <class T>
struct RowNorm {
    ptrdiff_t rows, columns, stride;
    T epsilon;
    const T* x;
    T* hat;      // normalised
    T* inverse;  // [rows]: 1 / sqrt(variance + epsilon)
    const T* gain;
    const T* delta;
    T* below;
    bool keep;  // adds to below
};

// A panel whose columns are normalised over the rows; from `gain` on: for the way back alone.
template <class T>
struct ColumnNorm {
    ptrdiff_t rows;
    T epsilon;
    const T* x;
    const T* share;  // [rows]: what each row contributes to the means
    T* hat;
    T *mean, *variance, *inverse;  // [P]
    const T* gain;
    const T* delta;
    const T *delta_sum, *product_sum;  // [P]: of delta, and of delta * hat
    T* below;
    bool keep;
};

// One sparse row on its way through the first layer.
template <class T>
struct SparseRow {
    const int32_t* columns;
    const T* values;
    int64_t n;
    const T* weights;  // in blocks [I/P][panels][P][P]
    ptrdiff_t panels;  // of outputs
    const T* bias;
    T* z;              // the row in the first panel
    ptrdiff_t stride;  // rows of a panel
};

// An element of a sparse batch: row of the batch, column within an input panel.
template <class T>
struct SparseEntry {
    int32_t row, column;
    T value;
};

// A layer of a tiny network, samples in the lanes.
template <class T>
struct LanesLayer {
    ptrdiff_t inputs, outputs;
    ptrdiff_t weights, biases;  // offsets into theta and, in vectors, into the sums
    const Activation<T>* activation;
    T* z;  // [outputs][lanes], before the activation
    T* a;  // and after it
};

// A tile of samples through all layers. From `delta` on: for the backward pass alone.
template <class T>
struct LanesPass {
    const LanesLayer<T>* layers;
    ptrdiff_t depth;
    const T* x;  // [inputs][lanes]
    const T* theta;
    ptrdiff_t lanes;
    T* delta;     // [outputs][lanes]: dJ/d(outputs before the link); overwritten
    T* below[2];  // [widest][lanes]: dJ/d(inputs) of layer l in below[l % 2]
    T* sums;      // a vector a parameter: written, or added to when `keep`
    bool keep, input_gradient;
    Laps* laps;  // null: nobody measures
};

template <class T>
struct Kernels {
    int lanes;
    // By vectors a panel - 1: A in row panels, A in transposed panels.
    void (*product[2])(const Product<T>&) noexcept;
    void (*product_transposed[2])(const Product<T>&) noexcept;
    void (*product_few_rows[2])(const FewRows<T>&) noexcept;
    void (*lanes_forward)(const LanesPass<T>&) noexcept;
    void (*lanes_backward)(const LanesPass<T>&) noexcept;
    // to[i] = sum of vector i of acc, for n of them; zero up to a whole vector.
    void (*sum_vectors)(const T* acc, ptrdiff_t n, T* to) noexcept;
    // sums[P] (+)= column sums of rows x P.
    void (*column_sums[2])(const T* from, ptrdiff_t rows, T* sums, bool keep) noexcept;
    void (*transpose_block[2])(const T* from, T* to) noexcept;  // P x P
    void (*gather_panels[2])(const Gather<T>&) noexcept;
    void (*gather_lanes)(const Gather<T>&) noexcept;
    // columns of a (B, columns) matrix between panels and lanes, whole squares
    void (*panels_to_lanes[2])(const T* from, ptrdiff_t panel_stride, ptrdiff_t rows, ptrdiff_t columns, T* to,
                               ptrdiff_t lane_stride) noexcept;
    void (*lanes_to_panels[2])(const T* from, ptrdiff_t lane_stride, ptrdiff_t rows, ptrdiff_t columns, T* to,
                               ptrdiff_t panel_stride) noexcept;
    void (*sparse_forward[2])(const SparseRow<T>&) noexcept;
    void (*sparse_gradient[2])(const SparseEntry<T>* entries, int64_t n, const T* delta, T* to, bool keep) noexcept;
    void (*drop[2])(const DropBlock<T>&) noexcept;
    // Back through dropout and the activation before it.
    void (*drop_backward)(const DropKey&, const Activation<T>&, const T* z, const T* a, T* delta, ptrdiff_t n) noexcept;
    void (*affine[2])(const Affine<T>&) noexcept;
    void (*affine_sums[2])(const AffineSums<T>&) noexcept;
    void (*add)(const T* x, const T* y, T* to, ptrdiff_t n) noexcept;  // y null: a copy; to may be x or y
    void (*normalize_rows[2])(const RowNorm<T>&) noexcept;
    void (*normalize_rows_backward[2])(const RowNorm<T>&) noexcept;
    void (*normalize_columns[2])(const ColumnNorm<T>&) noexcept;
    void (*normalize_columns_backward[2])(const ColumnNorm<T>&) noexcept;
    double (*sum_squares)(const T* from, ptrdiff_t n) noexcept;
    bool (*all_finite)(const T* from, ptrdiff_t n) noexcept;
    bool (*squares_finite)(const T* from, ptrdiff_t n) noexcept;
    double (*fma_peak)(int64_t repeats) noexcept;  // floating-point operations done

    const Activation<T>* activations;
    int n_activations;
    const Loss<T>* losses;
    int n_losses;
    const Optimizer<T>* optimizers;
    int n_optimizers;
};

struct KernelTable {
    const char* isa;
    Kernels<float> f32;
    Kernels<double> f64;
};

// One object file each; only those that the build made exist.
extern const KernelTable kernels_baseline;
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;

}  // namespace gradstep
