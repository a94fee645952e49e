#include "engine/engine.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "engine/dispatch.h"

namespace gradstep {

namespace {

// Larger networks keep no checkpoint, which would double their memory and cost them a pass over all of it: their
// updates are guarded against gradients that are not finite.
constexpr std::size_t kMostRemembered = std::size_t{8} << 20;

// A checkpoint is taken at the end of the first epoch after so many steps.
constexpr int64_t kCheckpointSteps = 64;

constexpr int64_t kPredictedRows = 8192;  // between two looks at should_stop

constexpr int kStatistics = -2, kTrainedStatistics = -3;

StatisticsSet set_of(int what) {
    return what == kTrainedStatistics ? StatisticsSet::other : StatisticsSet::in_use;
}

// Weights that every core can hold beside its rows.
constexpr int64_t kRowwiseBytes = 768 * 1024;

template <class T>
std::unique_ptr<PanelStep<T>> make_panel_step(const PanelNet<T>& net, Profile& profile) {
    if (net.plan().is_chain() && !net.custom_loss() &&
        net.plan().weights() * static_cast<int64_t>(sizeof(T)) <= kRowwiseBytes)
        return std::make_unique<RowwiseStep<T>>(net, profile);
    return std::make_unique<LayeredStep<T>>(net, profile);
}

template <class T>
int64_t rows_of_epoch(const Data<T>& data, const TrainOptions& options) {
    return options.order ? options.order_rows : data.n;
}

}  // namespace

template <class T>
Engine<T>::Engine(const Plan& plan, const KernelTable& table)
    : plan_(plan),
      drops_(plan.drops()),
      clips_(plan.clips()),
      is_chain_(plan.is_chain()),
      operations_per_row_(plan.operations(1)),
      k_(of_type<T>(table)),
      net_(make_net(k_, plan)),
      update_(find(k_.optimizers, k_.n_optimizers, plan.optimizer), plan),
      network_update_(k_, *net_, update_, profile_),
      count_(plan),
      statistics_(plan_, *net_),
      folded_(plan.normalises_batches() ? std::make_unique<Folded<T>>(k_, *net_) : nullptr),
      inference_(folded_ ? folded_->net() : *net_) {
    const std::size_t n = net_->parameters().total;
    const auto arrays = static_cast<std::size_t>(1 + states());
    state_size_ = n * arrays + statistics_.total();
    const bool remembers = state_size_ * sizeof(T) <= kMostRemembered;
    arena_.allocate([&](Taker& take) {
        update_.theta = take.template take<T>(state_size_);
        update_.state_stride = static_cast<ptrdiff_t>(n);
        statistics_.lie_at(update_.theta + n * arrays);
        remembered_ = remembers ? take.template take<T>(state_size_) : nullptr;
    });
    update_.weights = net_->parameters().weights;
    // A batch that is normalised goes layer by layer, however small the network.
    if (fits_cache<T>(plan) && !plan.custom_loss() && !folded_)
        chunked_ = std::make_unique<ChunkedGradient<T>>(*net_, profile_);
    else
        panel_step_ = make_panel_step(dynamic_cast<const PanelNet<T>&>(*net_), profile_);
}

template <class T>
void Engine<T>::get(int what, std::size_t layer, T* W, T* b) const {
    if (what > kStatistics) return net_->unpack(layer, update_.state(what), W, b);
    statistics_.get(layer, set_of(what), W, b);
}

template <class T>
void Engine<T>::set(int what, std::size_t layer, const T* W, const T* b) {
    forget_checks();
    if (what > kStatistics) {
        net_->pack(layer, W, b, update_.state(what));
        if (what < 0 && plan_.averages()) net_->pack(layer, W, b, update_.average());
        return;
    }
    statistics_.set(layer, set_of(what), W, b);
    if (what == kStatistics && plan_.averages()) statistics_.set(layer, StatisticsSet::other, W, b);
}

// Of the batch at work: a loss may be finite where they are not.
template <class T>
bool Engine<T>::statistics_are_finite() const {
    for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
        if (plan_.layers[l].kind != Kind::batch_norm) continue;
        const ptrdiff_t n = plan_.layers[l].n_out;
        if (!k_.all_finite(panel_step_->mean(l), n) || !k_.all_finite(panel_step_->variance(l), n)) return false;
    }
    return true;
}

template <class T>
void Engine<T>::move_statistics(const Batch<T>& b) {
    statistics_.move(b, *panel_step_);
    if (update_.average_gain() > 0) statistics_.average(update_.average_gain());
}

template <class T>
void Engine<T>::set_input_transform(const T* shift, const T* scale) {
    shift_ = scale_ = nullptr;
    if (!shift) return;
    const auto n = static_cast<std::size_t>(plan_.n_in());
    transform_arena_.allocate([&](Taker& take) {
        shift_ = take.template take<T>(n + 64);  // gathers load whole vectors
        scale_ = take.template take<T>(n + 64);
    });
    std::copy(shift, shift + n, shift_);
    std::copy(scale, scale + n, scale_);
}

template <class T>
void Engine<T>::transform(Data<T>& data) const {
    data.shift = shift_;
    data.scale = scale_;
}

template <class T>
typename Engine<T>::Scales Engine<T>::scales(const Batch<T>& b) const {
    const double weight = b.weight_sum();
    const double outputs = net_->loss().mean_over_outputs ? static_cast<double>(plan_.n_out()) : 1.0;
    const double l2 = !plan_.l2_per_batch ? plan_.l2 : weight > 0 ? plan_.l2 / weight : 0.0;
    if (net_->custom_loss()) return {weight, 1.0, l2};
    return {weight, weight > 0 ? 1 / (weight * outputs) : 0.0, l2};
}

template <class T>
void Engine<T>::prepare(int64_t rows, int threads, bool sparse) {
    if (chunked_)
        chunked_->prepare(rows, threads);
    else
        panel_step_->prepare(rows, threads, sparse);
    if (panel_step_ && (clips_ || rows > panel_step_->most_rows() || !is_chain_)) gradient_in_memory();
}

// Training moves other parameters than those that the user sees, which are their average.
template <class T>
void Engine<T>::exchange_average() {
    if (!plan_.averages()) return;
    std::swap_ranges(update_.theta, update_.theta + net_->parameters().total, update_.average());
    statistics_.exchange();
    if (folded_) folded_->forget();
}

template <class T>
class Engine<T>::Exchanged {
public:
    explicit Exchanged(Engine& engine) : engine_(engine) { engine_.exchange_average(); }
    ~Exchanged() { engine_.exchange_average(); }
    Exchanged(const Exchanged&) = delete;
    Exchanged& operator=(const Exchanged&) = delete;

private:
    Engine& engine_;
};

// At the end of epochs, counted from 1 over the network's life: an equal mean from swa_start on.
template <class T>
void Engine<T>::average_epoch(int64_t epoch) {
    const auto averaged = static_cast<double>(epoch) - plan_.swa_start;  // epochs before this one
    const auto gain = static_cast<T>(averaged > 0 ? 1 / (averaged + 1) : 1.0);
    follow(update_.theta, gain, update_.average(), static_cast<ptrdiff_t>(net_->parameters().total));
    statistics_.average(gain);
}

template <class T>
T* Engine<T>::gradient_in_memory() {
    if (!gradient_)
        gradient_arena_.allocate([&](Taker& take) { gradient_ = take.template take<T>(net_->parameters().total); });
    return gradient_;
}

// The gradient of scale * (sum of weight * loss) in gradient_, pass by pass.
template <class T>
double Engine<T>::accumulate_passes(const Batch<T>& b, T scale, int threads, const DropStep& drop, T* dx) {
    double loss = 0;
    const int64_t most = std::min(panel_step_->most_rows(), b.rows);
    for (int64_t r = 0; r < b.rows; r += most) {
        const Batch<T> part = b.part(r, std::min(r + most, b.rows));
        panel_step_->set_dropout(drop.at(r));
        loss += panel_step_->forward(part, update_.theta, scale, threads, dx != nullptr);
        panel_step_->backward(part.rows, update_.theta, {gradient_in_memory(), r > 0, nullptr}, threads, dx != nullptr);
        if (dx) panel_step_->copy_input_gradient(part.rows, dx + r * plan_.n_in());
    }
    return loss;
}

// Backward and update in one: false if a block of weights would overflow and was left out. The gradients of layers
// without products go to memory, where the errors below them need some of them.
template <class T>
bool Engine<T>::backward_fused(int64_t rows, int threads) {
    std::atomic<bool> overflow{false};
    const FusedUpdate<T> fused{update_, guarded_ ? network_update_.guard() : nullptr, overflow};
    T* gradient = is_chain_ ? nullptr : gradient_in_memory();
    panel_step_->backward(rows, update_.theta, {gradient, false, &fused}, threads, false);
    if (!is_chain_) network_update_.apply_to_others(fused, gradient, threads);
    return !overflow;
}

// Forward, backward, update; the loss before the update. A loss that is not finite changes nothing. NaN where a
// finite loss has a gradient that is not.
template <class T>
double Engine<T>::step_batch(const Batch<T>& b, const Scales& s, double learning_rate, int threads) {
    const auto scale = static_cast<T>(s.loss);
    if (chunked_) {
        const double loss = chunked_->compute(b, update_.theta, scale, threads, drop_step()) * s.loss +
                            network_update_.penalty(s.l2, threads);
        if (!std::isfinite(loss)) return loss;
        begin_update(s, learning_rate);
        return network_update_(chunked_->gradient(), threads, guarded_) ? loss : undo_update();
    }
    const bool fused = !clips_ && b.rows <= panel_step_->most_rows();
    const DropStep drop = drop_step();
    if (fused) panel_step_->set_dropout(drop);
    double loss = fused ? panel_step_->forward(b, update_.theta, scale, threads, false)
                        : accumulate_passes(b, scale, threads, drop, nullptr);
    loss = loss * s.loss + network_update_.penalty(s.l2, threads);
    if (!std::isfinite(loss)) return loss;
    if (folded_ && !statistics_are_finite()) return std::numeric_limits<double>::quiet_NaN();
    begin_update(s, learning_rate);
    if (fused && !backward_fused(b.rows, threads))  // some blocks are left out
        return std::numeric_limits<double>::quiet_NaN();
    if (!fused && !network_update_({gradient_, 0, 1}, threads, guarded_)) return undo_update();
    if (folded_) move_statistics(b);
    return loss;
}

template <class T>
double Engine<T>::timed_step(const Batch<T>& b, const Scales& s, double learning_rate, int threads) {
    threads = thread_choice_.begin_step(operations_per_row_ * b.rows, threads);
    const double loss = step_batch(b, s, learning_rate, threads);
    thread_choice_.end_step();
    return loss;
}

template <class T>
void Engine<T>::begin_update(const Scales& s, double learning_rate) {
    forget_checks();
    count_.advance();
    update_.set_step(count_, learning_rate, s.l2);
}

// The update was refused as a whole.
template <class T>
double Engine<T>::undo_update() {
    count_.set(count_.value() - 1);
    return std::numeric_limits<double>::quiet_NaN();
}

template <class T>
double Engine<T>::step(Data<T> data, double learning_rate) {
    transform(data);
    const int threads = num_threads();
    prepare(data.n, threads, !data.x);
    if (chunked_) chunked_->forget_inputs();
    guarded_ = true;
    const Batch<T> all{&data, nullptr, 0, data.n};
    const Exchanged training(*this);
    return timed_step(all, scales(all), learning_rate, threads);
}

template <class T>
double Engine<T>::predict(Data<T> data, T* out, const std::function<bool()>& should_stop) {
    transform(data);
    const int threads = num_threads();
    const T* theta = update_.theta;
    if (folded_) theta = folded_->parameters(theta, [this](std::size_t l) { return statistics_.of(l); });
    if (data.n <= kPredictedRows) return mean_loss(data, inference_.run(data, theta, out, threads));
    Interrupts interrupts(should_stop);
    double loss = 0;
    for (int64_t r = 0; r < data.n && !interrupts.stop(); r += kPredictedRows) {
        const Data<T> block = part_of(data, r, std::min(kPredictedRows, data.n - r));
        loss += inference_.run(block, theta, out ? out + r * plan_.n_out() : nullptr, threads);
    }
    return mean_loss(data, loss);
}

template <class T>
double Engine<T>::mean_loss(const Data<T>& data, double sum) const {
    return data.y || data.labels ? sum * scales({&data, nullptr, 0, data.n}).loss : 0.0;
}

template <class T>
Data<T> Engine<T>::part_of(const Data<T>& data, int64_t first, int64_t rows) const {
    Data<T> part = data;
    part.n = rows;
    part.x += first * plan_.n_in();
    if (part.y) part.y += first * net_->targets();
    if (part.labels) part.labels += first;
    if (part.weight) part.weight += first;
    return part;
}

template <class T>
double Engine<T>::loss_and_gradients(Data<T> data, const std::vector<T*>& W, const std::vector<T*>& b, T* dx) {
    transform(data);
    const int threads = num_threads();
    const Batch<T> batch{&data, nullptr, 0, data.n};
    const Scales s = scales(batch);
    prepare(data.n, threads, !data.x);
    T* gradient = nullptr;
    double loss = 0;
    if (chunked_) {
        chunked_->forget_inputs();
        loss = chunked_->compute(batch, update_.theta, static_cast<T>(s.loss), threads, DropStep{}, dx);
        const GradientParts<T> g = chunked_->gradient();
        gradient = g.first;
        for (int part = 1; part < g.parts; ++part)
            for (ptrdiff_t i = 0; i < g.stride; ++i) gradient[i] += gradient[part * g.stride + i];
    } else {
        loss = accumulate_passes(batch, static_cast<T>(s.loss), threads, DropStep{}, dx);
        gradient = gradient_in_memory();
    }
    network_update_.add_penalties(gradient, static_cast<T>(s.l2), threads);
    for (std::size_t l = 0; l < plan_.layers.size(); ++l) net_->unpack(l, gradient, W[l], b[l]);
    for (int64_t i = 0; dx && data.scale && i < data.n * plan_.n_in(); ++i) dx[i] *= data.scale[i % plan_.n_in()];
    return loss * s.loss + network_update_.penalty(s.l2, threads);
}

// Copies parameters and states, unless one of them is not finite: then nothing. After guarded steps only
// the parameters are looked at: a pass over the states of a large network is felt.
template <class T>
bool Engine<T>::remember(bool after_guarded_steps) {
    const std::size_t in_doubt = after_guarded_steps ? net_->parameters().total : state_size_;
    if (!k_.all_finite(update_.theta, static_cast<ptrdiff_t>(in_doubt))) return false;
    if (remembered_) std::copy(update_.theta, update_.theta + state_size_, remembered_);
    remembered_step_ = count_.value();
    return checked_ = true;
}

template <class T>
void Engine<T>::restore() {
    if (!remembered_) return;
    if (folded_) folded_->forget();
    std::copy(remembered_, remembered_ + state_size_, update_.theta);
    count_.set(remembered_step_);
}

// finished: every batch was used. Stops early when interrupted or when the loss is not finite.
template <class T>
double Engine<T>::run_epoch(const Data<T>& data, const TrainOptions& options, int64_t epoch, int threads,
                            Interrupts& interrupts, bool& finished) {
    const int64_t* order = options.order;
    const int64_t rows = rows_of_epoch(data, options);
    if (!order && options.shuffle && options.batch_size < rows) {
        permutation_.fill(options.seed, options.first_epoch + static_cast<uint32_t>(epoch), rows, order_.data());
        order = order_.data();
    }
    const double* rates = options.learning_rates + epoch * options.rates;
    double loss = 0, weight = 0;
    finished = false;
    for (int64_t r = 0; r < rows; r += options.batch_size) {
        if (interrupts.stop()) return loss;
        const Batch<T> b{&data, order, r, std::min(options.batch_size, rows - r)};
        const Scales s = scales(b);
        const double rate = rates[options.rates > 1 ? r / options.batch_size : 0];
        const double batch_loss = timed_step(b, s, rate, threads);
        if (!std::isfinite(batch_loss)) return batch_loss;
        loss += batch_loss * s.weight_sum;
        weight += s.weight_sum;
    }
    finished = true;
    return weight > 0 ? loss / weight : loss;
}

// Epochs from, from + 1, ... with a checkpoint at the end of the first after `interval`. False when a loss or,
// at a checkpoint, a parameter is not finite.
template <class T>
bool Engine<T>::run_epochs(const Data<T>& data, const TrainOptions& options, int64_t interval, int threads,
                           Interrupts& interrupts, TrainResult& result) {
    auto done = static_cast<int64_t>(result.losses.size());
    for (int64_t checkpoint = done + interval; done < options.epochs; ++done) {
        bool finished = false;
        const double loss = run_epoch(data, options, done, threads, interrupts, finished);
        if (!std::isfinite(loss)) return false;
        if (!finished) {
            result.interrupted = true;
            return k_.all_finite(update_.theta, static_cast<ptrdiff_t>(net_->parameters().total));
        }
        if (plan_.swa_start > 0) [[unlikely]]
            average_epoch(options.first_epoch + done + 1);
        if (done + 1 == checkpoint || done + 1 == options.epochs) {
            if (!remember(guarded_)) return false;
            remembered_epochs_ = done + 1;
            checkpoint += interval;
        }
        result.losses.push_back(loss);
    }
    return true;
}

// Training that diverges ends at the last good epoch. Where checkpoints are further apart, that epoch is
// reached again from the one before it: the same steps have the same bits.
template <class T>
TrainResult Engine<T>::train(Data<T> data, const TrainOptions& options, const std::function<bool()>& should_stop) {
    transform(data);
    const int threads = num_threads();
    const int64_t rows = rows_of_epoch(data, options);
    prepare(std::min(options.batch_size, rows), threads, !data.x);
    if (options.shuffle && !options.order && options.batch_size < rows) order_.resize(static_cast<std::size_t>(rows));
    if (chunked_) {
        chunked_->forget_inputs();
        if (options.batch_size >= rows) chunked_->keep_inputs({&data, options.order, 0, rows});
    }
    guarded_ = !remembered_;
    Interrupts interrupts(should_stop);
    const Exchanged training(*this);
    TrainResult result;
    result.losses.reserve(static_cast<std::size_t>(options.epochs));
    remembered_epochs_ = 0;
    const int64_t steps = (rows + options.batch_size - 1) / options.batch_size;
    const int64_t interval = remembered_ ? std::max<int64_t>(1, kCheckpointSteps / steps) : options.epochs;
    result.diverged = !checked_ && !remember(false);
    try {
        if (!result.diverged && !run_epochs(data, options, interval, threads, interrupts, result)) {
            result.diverged = true;
            restore();
            if (remembered_ && static_cast<int64_t>(result.losses.size()) > remembered_epochs_) {
                result.losses.resize(static_cast<std::size_t>(remembered_epochs_));
                run_epochs(data, options, 1, threads, interrupts, result);
                restore();
            }
        }
    } catch (...) {
        result.raised = std::current_exception();
    }
    result.restored = remembered_ || !result.diverged;
    if (chunked_) chunked_->forget_inputs();
    return result;
}

template class Engine<float>;
template class Engine<double>;

}  // namespace gradstep
