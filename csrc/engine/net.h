// A network in one memory layout: how parameters and activations lie, and the passes over a tile of
// samples. PanelNet and LanesNet implement it.
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/plan.h"
#include "engine/profile.h"
#include "kernels/table.h"

namespace gradstep {

// The entry of that name in one of the table's lists.
template <class Entry>
const Entry& find(const Entry* entries, int n, const std::string& name) {
    for (int i = 0; i < n; ++i)
        if (name == entries[i].name) return entries[i];
    throw std::invalid_argument("the compiled backend does not know '" + name + "'");
}

// Small networks: weights, gradients and a tile of activations share the second-level cache, so a tile of
// samples goes through all layers, with a gradient for each chunk. Larger ones have one gradient (panel_step.h).
template <class T>
bool fits_cache(const Plan& plan) {
    return plan.weights() * static_cast<int64_t>(sizeof(T)) <= 64 * 1024;
}

// Inputs of a tile of samples, gathered: x in the net's layout, y and weight in lanes.
template <class T>
struct TileInputs {
    T* x = nullptr;
    T* y = nullptr;
    T* weight = nullptr;
};

// For whom outputs are dropped: the update after `step` others, in the part of its batch that begins at `row`.
struct DropStep {
    bool active = false;
    uint32_t step = 0;
    int64_t row = 0;

    DropStep at(int64_t first) const { return {active, step, row + first}; }
};

// Activations and errors of up to `rows` samples, planned once and used for every tile.
template <class T>
struct Workspace {
    ptrdiff_t rows = 0;  // capacity, whole lanes
    TileInputs<T> inputs;
    std::vector<T*> z, a;                     // PanelNet, per layer; z[l] == a[l] unless the activation needs z
    std::vector<LanesLayer<T>> lanes_layers;  // LanesNet
    std::vector<T*> errors;                   // dJ/d(inputs of layer l), and of the outputs; buffers may be shared
    // Of layers without products, and null for others: normalised inputs, 1 / deviation of each row or column; of
    // column normalisation the statistics, and what each row contributes to them.
    std::vector<T*> hat, inverse, mean, variance;
    T* share = nullptr;
    T* lanes_z = nullptr;
    T* lanes_delta = nullptr;
    T* sums = nullptr;     // LanesNet: vectors of partial sums, one a parameter
    T* scratch = nullptr;  // PanelNet: four transposed weight blocks and one gradient block
    Laps* laps = nullptr;  // of the thread at work
    DropStep drop;         // of the tile at work
};

// What is wanted of a tile: the gradient of scale times its sum of weight * loss.
template <class T>
struct TileGradient {
    T scale;
    T* to;  // one a parameter: written, or added to when `keep`; complete after finish_gradient
    bool keep;
    bool inputs;  // dJ/dx in errors[0], too
};

// A gradient of all parameters, in parts, which are added up in order.
template <class T>
struct GradientParts {
    T* first;
    ptrdiff_t stride;
    int parts;
};

struct LayerParameters {
    std::size_t weights, biases;              // offsets in elements; of gain and shift in layers that have these
    std::size_t n_weights = 0, n_biases = 0;  // elements, with pads
};

// All weights come first, then all biases, gains and shifts; both parts end at whole vectors.
struct ParameterLayout {
    std::vector<LayerParameters> layers;
    std::size_t weights = 0, total = 0;
};

template <class T>
class Net {
public:
    Net(const Kernels<T>& kernels, const Plan& plan);
    virtual ~Net() = default;

    const ParameterLayout& parameters() const { return layout_; }
    virtual void pack(std::size_t layer, const T* W, const T* b, T* to) const = 0;  // null: stays as it is
    virtual void unpack(std::size_t layer, const T* from, T* W, T* b) const = 0;

    // Distance of panels in rows, or of lane rows in elements, for a tile in a workspace of that capacity.
    virtual ptrdiff_t tile_stride(ptrdiff_t rows, ptrdiff_t capacity) const = 0;
    // Rows that go through all layers together in training, at most: whole lanes.
    virtual ptrdiff_t tile_rows() const = 0;
    // Rows that are worth a gradient of their own.
    virtual int64_t least_chunk() const = 0;
    // Elements of a gathered tile.
    virtual std::size_t x_size(ptrdiff_t rows) const = 0;
    std::size_t y_size(ptrdiff_t rows) const { return static_cast<std::size_t>(y_rows() * rows); }
    virtual void take_workspace(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training) const = 0;

    virtual void gather_x(const Gather<T>& rows) const = 0;
    virtual void forward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows) const = 0;
    // Outputs before the link, in lanes, at the returned address.
    virtual const T* outputs_in_lanes(const Workspace<T>& ws, ptrdiff_t rows) const = 0;
    // Forward, loss and backward of a gathered tile; the sum of weight * loss.
    virtual double gradient(const Workspace<T>& ws, const TileInputs<T>& in, const T* theta, ptrdiff_t rows,
                            const TileGradient<T>& wanted) const;
    // After the last tile of a chunk.
    virtual void finish_gradient(const Workspace<T>& ws, T* gradient) const = 0;
    // The tile's outputs through the link, row-major (rows, n_out). They are lost.
    virtual void copy_predictions(const Workspace<T>& ws, ptrdiff_t rows, T* to) const = 0;
    // dJ/dx of the last tile, row-major (rows, n_in).
    virtual void copy_input_gradient(const Workspace<T>& ws, ptrdiff_t rows, T* to) const = 0;

    const Kernels<T>& kernels() const { return k_; }
    const Loss<T>& loss() const { return loss_; }
    bool custom_loss() const { return !loss_.value; }             // the caller computes it
    const T* loss_option() const { return loss_option_.data(); }  // one an output
    const Plan& plan() const { return plan_; }
    // Lanes are a power of two, and a division would be felt in tiny steps.
    ptrdiff_t whole_lanes(ptrdiff_t rows) const {
        const ptrdiff_t lanes = k_.lanes;
        return (rows + lanes - 1) & -lanes;
    }
    ptrdiff_t targets() const { return targets_; }  // columns of y that are not labels
    // Of samples in lanes `stride` apart: what a loss must know, but for where its operands lie.
    LossBatch<T> loss_batch(ptrdiff_t rows, ptrdiff_t stride) const {
        return {.outputs = plan_.n_out(), .lanes = whole_lanes(rows), .stride = stride, .option = loss_option()};
    }
    // Rows of targets in lanes.
    ptrdiff_t y_rows() const { return loss_.takes_labels ? 1 : whole_lanes(targets_); }

protected:
    // From lanes_delta.
    virtual void backward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows,
                          const TileGradient<T>& wanted) const = 0;

    void link(const T* z, T* to, ptrdiff_t outputs, ptrdiff_t lanes, ptrdiff_t stride) const {
        loss_.link({.z = z, .link = to, .outputs = outputs, .lanes = lanes, .stride = stride, .option = loss_option()});
    }

    const Activation<T>& activation(std::size_t layer) const { return *activations_[layer]; }
    std::size_t depth() const { return plan_.layers.size(); }

    const Kernels<T>& k_;
    const Plan plan_;
    const Loss<T>& loss_;
    const ptrdiff_t targets_;
    std::vector<T> loss_option_;
    std::vector<const Activation<T>*> activations_;
    ParameterLayout layout_;
};

// Lanes for tiny networks, panels of one vector for small ones, of two for the rest: what does not fit the cache
// is always a PanelNet.
template <class T>
std::unique_ptr<Net<T>> make_net(const Kernels<T>& kernels, const Plan& plan);

}  // namespace gradstep
