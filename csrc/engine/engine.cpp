#include "engine/engine.h"

#include <chrono>
#include <cmath>

#include "engine/dispatch.h"

namespace gradstep {

namespace {

// Larger networks keep no copy of the last good epoch: their steps stop before an update that follows a
// loss that is not finite.
constexpr std::size_t kMostRemembered = std::size_t{64} << 20;

// A checkpoint is taken at the end of the first epoch after so many steps.
constexpr int64_t kCheckpointSteps = 64;

constexpr ptrdiff_t kUpdateSlice = 16 * 1024;  // elements that one task updates

template <class T>
UpdateSlice<T> part_of(const UpdateSlice<T>& s, ptrdiff_t from, ptrdiff_t to) {
    T* first = s.state[0] ? s.state[0] + from : nullptr;
    T* second = s.state[1] ? s.state[1] + from : nullptr;
    return {s.theta + from, {first, second}, s.gradient + from, s.part_stride, s.parts, to - from};
}

}  // namespace

template <class T>
Engine<T>::Engine(const Plan& plan, const KernelTable& table)
    : plan_(plan),
      k_(of_type<T>(table)),
      net_(make_net(k_, plan)),
      optimizer_(find(k_.optimizers, k_.n_optimizers, plan.optimizer)),
      hypers_{constants(plan, plan.l2, plan.weight_decay), constants(plan, 0, 0)},
      count_(plan.beta1, plan.beta2),
      inference_(*net_) {
    const std::size_t n = net_->parameters().total;
    const std::size_t arrays = 1 + static_cast<std::size_t>(optimizer_.states);
    const bool remembers = n * arrays * sizeof(T) <= kMostRemembered;
    arena_.allocate([&](Taker& take) {
        theta_ = take.template take<T>(n * arrays);
        for (std::size_t s = 1; s < arrays; ++s) states_[s - 1] = theta_ + s * n;
        remembered_ = remembers ? take.template take<T>(n * arrays) : nullptr;
    });
    if (fits_cache<T>(plan))
        chunked_ = std::make_unique<ChunkedGradient<T>>(*net_);
    else
        layered_ = std::make_unique<LayeredStep<T>>(dynamic_cast<const PanelNet<T>&>(*net_));
}

template <class T>
void Engine<T>::get(int what, std::size_t layer, T* W, T* b) const {
    net_->unpack(layer, what < 0 ? theta_ : states_[what], W, b);
}

template <class T>
void Engine<T>::set(int what, std::size_t layer, const T* W, const T* b) {
    net_->pack(layer, W, b, what < 0 ? theta_ : states_[what]);
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
    return {weight, weight > 0 ? 1 / (weight * outputs) : 0.0};
}

template <class T>
void Engine<T>::prepare(int64_t rows, int threads) {
    if (chunked_)
        chunked_->prepare(rows, threads);
    else
        layered_->prepare(rows, threads);
}

template <class T>
double Engine<T>::penalty() const {
    if (plan_.l2 == 0) return 0;
    return plan_.l2 / 2 * k_.sum_squares(theta_, static_cast<ptrdiff_t>(net_->parameters().weights));
}

template <class T>
Hyper<T> Engine<T>::constants(const Plan& plan, double l2, double weight_decay) {
    Hyper<T> h{};
    h.l2 = static_cast<T>(l2);
    h.momentum = static_cast<T>(plan.momentum);
    h.nesterov = static_cast<T>(plan.nesterov);
    h.beta1 = static_cast<T>(plan.beta1);
    h.beta2 = static_cast<T>(plan.beta2);
    h.epsilon = static_cast<T>(plan.epsilon);
    h.weight_decay = static_cast<T>(weight_decay);
    return h;
}

// What changes from step to step.
template <class T>
void Engine<T>::advance(double learning_rate) {
    count_.advance();
    for (Hyper<T>* h : {&hypers_.weights, &hypers_.biases}) {
        h->learning_rate = static_cast<T>(learning_rate);
        if (optimizer_.states < 2) continue;
        h->step_size = static_cast<T>(learning_rate / count_.correction1());
        h->second_correction = static_cast<T>(1 / std::sqrt(count_.correction2()));
    }
}

template <class T>
void Engine<T>::update(const T* gradient, ptrdiff_t part_stride, int parts, int threads) {
    const auto n_weights = static_cast<ptrdiff_t>(net_->parameters().weights);
    const auto n = static_cast<ptrdiff_t>(net_->parameters().total);
    const UpdateSlice<T> all{theta_, {states_[0], states_[1]}, gradient, part_stride, parts, n};
    if (n <= kUpdateSlice && plan_.l2 == 0 && plan_.weight_decay == 0) {  // tiny: one call for all
        optimizer_.update(all, hypers_.biases);
        return;
    }
    const int tasks = static_cast<int>((n_weights + kUpdateSlice - 1) / kUpdateSlice);
    parallel_for(tasks, tasks > 4 ? threads : 1, [&](int t, int) {
        optimizer_.update(part_of(all, t * kUpdateSlice, std::min((t + 1) * kUpdateSlice, n_weights)), hypers_.weights);
    });
    optimizer_.update(part_of(all, n_weights, n), hypers_.biases);
}

template <class T>
T* Engine<T>::layered_gradient() {
    if (!gradient_)
        gradient_arena_.allocate([&](Taker& take) { gradient_ = take.template take<T>(net_->parameters().total); });
    return gradient_;
}

// The gradient of scale * (sum of weight * loss) in gradient_, pass by pass.
template <class T>
double Engine<T>::accumulate_layered(const Batch<T>& b, T scale, int threads, T* dx) {
    double loss = 0;
    for (int64_t r = 0; r < b.rows; r += LayeredStep<T>::kMostRows) {
        const Batch<T> part = b.part(r, std::min(r + LayeredStep<T>::kMostRows, b.rows));
        loss += layered_->forward(part, theta_, scale, threads);
        layered_->backward(part.rows, theta_, {layered_gradient(), r > 0, nullptr}, threads, dx != nullptr);
        if (dx) layered_->copy_input_gradient(part.rows, dx + r * plan_.n_in());
    }
    return loss;
}

template <class T>
double Engine<T>::step_layered(const Batch<T>& b, double scale, int threads) {
    if (b.rows > LayeredStep<T>::kMostRows) {
        const double loss = accumulate_layered(b, static_cast<T>(scale), threads, nullptr) * scale;
        if (std::isfinite(loss)) update(gradient_, 0, 1, threads);
        return loss;
    }
    const double loss = layered_->forward(b, theta_, static_cast<T>(scale), threads) * scale;
    if (!std::isfinite(loss)) return loss;
    const FusedUpdate<T> fused{&optimizer_, theta_, {states_[0], states_[1]}, hypers_};
    layered_->backward(b.rows, theta_, {nullptr, false, &fused}, threads, false);
    return loss;
}

// Forward, backward, update; the loss before the update. A loss that is not finite changes nothing.
template <class T>
double Engine<T>::step_batch(const Batch<T>& b, double learning_rate, int threads) {
    const Scales s = scales(b);
    const double regularisation = penalty();
    advance(learning_rate);
    if (layered_) return step_layered(b, s.loss, threads) + regularisation;
    const double loss = chunked_->compute(b, theta_, static_cast<T>(s.loss), threads) * s.loss;
    if (std::isfinite(loss)) update(chunked_->gradient(), chunked_->part_stride(), chunked_->parts(), threads);
    return loss + regularisation;
}

template <class T>
double Engine<T>::step(Data<T> data, double learning_rate) {
    transform(data);
    const int threads = num_threads();
    prepare(data.n, threads);
    if (chunked_) chunked_->forget_inputs();
    return step_batch({&data, nullptr, 0, data.n}, learning_rate, threads);
}

template <class T>
double Engine<T>::predict(Data<T> data, T* out) {
    transform(data);
    const double loss = inference_.run(data, theta_, out, num_threads());
    return loss * (data.y || data.labels ? scales({&data, nullptr, 0, data.n}).loss : 0.0);
}

template <class T>
double Engine<T>::loss_and_gradients(Data<T> data, const std::vector<T*>& W, const std::vector<T*>& b, T* dx) {
    transform(data);
    const int threads = num_threads();
    const Batch<T> batch{&data, nullptr, 0, data.n};
    const Scales s = scales(batch);
    prepare(data.n, threads);
    T* gradient = nullptr;
    double loss = 0;
    if (chunked_) {
        chunked_->forget_inputs();
        loss = chunked_->compute(batch, theta_, static_cast<T>(s.loss), threads, dx);
        gradient = chunked_->gradient();
        for (int part = 1; part < chunked_->parts(); ++part)
            for (ptrdiff_t i = 0; i < chunked_->part_stride(); ++i)
                gradient[i] += gradient[part * chunked_->part_stride() + i];
    } else {
        loss = accumulate_layered(batch, static_cast<T>(s.loss), threads, dx);
        gradient = layered_gradient();
    }
    for (std::size_t i = 0; plan_.l2 != 0 && i < net_->parameters().weights; ++i)
        gradient[i] += static_cast<T>(plan_.l2) * theta_[i];
    for (std::size_t l = 0; l < plan_.layers.size(); ++l) net_->unpack(l, gradient, W[l], b[l]);
    for (int64_t i = 0; dx && data.scale && i < data.n * plan_.n_in(); ++i) dx[i] *= data.scale[i % plan_.n_in()];
    return loss * s.loss + penalty();
}

template <class T>
std::size_t Engine<T>::state_size() const {
    return net_->parameters().total * (1 + static_cast<std::size_t>(optimizer_.states));
}

// Copies parameters and states, unless one of them is not finite: then nothing.
template <class T>
bool Engine<T>::remember() {
    if (!k_.all_finite(theta_, static_cast<ptrdiff_t>(state_size()))) return false;
    if (remembered_) std::copy(theta_, theta_ + state_size(), remembered_);
    remembered_step_ = count_.value();
    return true;
}

template <class T>
void Engine<T>::restore() {
    if (!remembered_) return;
    std::copy(remembered_, remembered_ + state_size(), theta_);
    count_.set(remembered_step_);
}

// Asks should_stop about every 20 ms without reading the clock in every step.
template <class T>
class Engine<T>::Interrupts {
public:
    explicit Interrupts(const std::function<bool()>& should_stop) : should_stop_(should_stop) {}

    bool stop() {
        if (--countdown_ > 0) return stopped_;
        const auto now = Clock::now();
        const double elapsed = std::chrono::duration<double>(now - last_).count();
        interval_ = elapsed < 0.01 ? std::min(interval_ * 2, 1 << 20) : std::max(interval_ / 2, 1);
        countdown_ = interval_;
        last_ = now;
        return stopped_ = stopped_ || should_stop_();
    }

private:
    using Clock = std::chrono::steady_clock;
    const std::function<bool()>& should_stop_;
    Clock::time_point last_ = Clock::now();
    int interval_ = 1, countdown_ = 1;
    bool stopped_ = false;
};

// finished: every batch was used. Stops early when interrupted or when the loss is not finite.
template <class T>
double Engine<T>::run_epoch(const Data<T>& data, const TrainOptions& options, int64_t epoch, int threads,
                            Interrupts& interrupts, bool& finished) {
    const bool whole = options.batch_size >= data.n;
    const bool shuffled = options.shuffle && !whole;
    if (shuffled)
        permutation_.fill(options.seed, options.first_epoch + static_cast<uint32_t>(epoch), data.n, order_.data());
    double loss = 0, weight = 0;
    finished = false;
    for (int64_t r = 0; r < data.n; r += options.batch_size) {
        if (interrupts.stop()) return loss;
        const Batch<T> b{&data, shuffled ? order_.data() : nullptr, r, std::min(options.batch_size, data.n - r)};
        const double part = data.weight ? b.weight_sum() : static_cast<double>(b.rows);
        const double batch_loss = step_batch(b, options.learning_rates[epoch], threads);
        if (!std::isfinite(batch_loss)) return batch_loss;
        loss += batch_loss * part;
        weight += part;
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
            return true;
        }
        if (done + 1 == checkpoint || done + 1 == options.epochs) {
            if (!remember()) return false;
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
    prepare(std::min(options.batch_size, data.n), threads);
    order_.resize(static_cast<std::size_t>(data.n));
    if (chunked_) {
        chunked_->forget_inputs();
        if (options.batch_size >= data.n) chunked_->keep_inputs({&data, nullptr, 0, data.n});
    }
    Interrupts interrupts(should_stop);
    TrainResult result;
    result.losses.reserve(static_cast<std::size_t>(options.epochs));
    remembered_epochs_ = 0;
    const int64_t steps = (data.n + options.batch_size - 1) / options.batch_size;
    const int64_t interval = remembered_ ? std::max<int64_t>(1, kCheckpointSteps / steps) : 1;
    result.diverged = !remember();
    if (!result.diverged && !run_epochs(data, options, interval, threads, interrupts, result)) {
        result.diverged = true;
        restore();
        if (static_cast<int64_t>(result.losses.size()) > remembered_epochs_) {
            result.losses.resize(static_cast<std::size_t>(remembered_epochs_));
            run_epochs(data, options, 1, threads, interrupts, result);
            restore();
        }
    }
    if (chunked_) chunked_->forget_inputs();
    return result;
}

template class Engine<float>;
template class Engine<double>;

}  // namespace gradstep
