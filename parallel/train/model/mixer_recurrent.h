// What linear attention and the delta rule share in a layer.
#pragma once

#include <optional>

#include "parallel/linear_attention.h"
#include "parallel/short_convolution.h"
#include "parallel/train/model/mixer.h"

namespace periplus::train {

/// A recurrence of kernels/linear_attention.h with as many heads as the model has, the norm of its output per head, and an output
/// gate: output = silu(x W_z) norm(out). A kind of layer adds what its operands are made of.
class RecurrentMixer : public Mixer {
 public:
  void plan(const Batch& batch, const Planning& planning) final;
  double flops(const Batch& batch) const final;
  double exposed_seconds() const override { return recurrence_->statistics().exposed_seconds; }

  void project(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) final;
  void forward(const MixerLayer& layer) final;
  ConstTensorView output(const MixerLayer& layer, const Tile& tile) final;
  TensorView doutput(const Tile& tile) final { return tile.of(dout_); }
  void output_backward(const MixerLayer& layer, const Tile& tile) final;
  void backward(const MixerLayer& layer) final;
  void project_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) final;

 protected:
  /// Roles of the first parameters of every layer; a kind of layer goes on from kOperands.
  enum Role : std::size_t { kZ, kNorm, kOperands };
  struct Form {
    Decay decay = Decay::none;
    bool delta_rule = false;
    double scale = 0;  ///< Of q; 0: 1/sqrt(head_size).
  };

  RecurrentMixer(const MixerSetup& setup, const Form& form);

  /// Plans and makes room for what the operands need.
  virtual void plan_operands(const Batch& batch, const Planning& planning) = 0;
  virtual void reserve_operands() = 0;
  virtual void project_operands(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) = 0;
  /// again: in backward; nothing is communicated.
  virtual LinearAttentionInputs operands(const MixerLayer& layer, bool again) = 0;
  /// out: of the recurrence, to which a skip may add.
  virtual void add_to_output(const MixerLayer&, TensorView) {}
  /// From the gradients of the operands (and of out, for a skip) to those of the projections.
  virtual void operands_backward(const MixerLayer& layer, const LinearAttentionGradients& gradients, TensorView dout) = 0;
  /// Adds to sum, the gradient of normed.
  virtual void project_operands_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) = 0;

  std::int64_t rows() const noexcept { return rows_; }
  std::int64_t capacity() const noexcept { return capacity_; }
  std::int64_t channels() const noexcept { return model_.heads * model_.head_size; }
  /// The whole of a [rows, heads * head_size] tensor by head.
  TensorView heads(const Tensor& tensor) const { return heads_of(top(tensor, rows_), 0, model_.heads, model_.head_size); }
  /// The whole of a [rows, heads] tensor as [rows, heads, 1].
  TensorView per_head(const Tensor& tensor) const { return top(tensor, rows_).reshape({rows_, model_.heads, 1}); }

  const ModelConfig& model_;
  DType dtype_;
  Memory memory_;
  std::vector<std::int64_t> layers_;

 private:
  /// Beside kept(), which has out, [rows, heads * head_size], a skip included: what does not grow with rows.
  struct Saved {
    Tensor incoming;     // [units, heads, head_size * head_size], accumulator type
    Tensor transitions;  // [units of all ranks, the same], if they are kept
  };
  void reserve();
  void make_room();
  LinearAttentionOutputs outputs(const MixerLayer& layer) const;
  const Tensor& out(const MixerLayer& layer) const { return kept_.tensor(layer.slot, 0); }

  Form form_;
  std::optional<DistributedLinearAttention> recurrence_;
  std::int64_t rows_ = 0, capacity_ = -1, unit_capacity_ = -1, transition_capacity_ = -1;
  bool keeps_transitions_ = false;
  std::vector<Saved> saved_;
  Tensor z_, dout_, dq_, dk_, dv_;     // [rows, heads * head_size]
  Tensor dlog_decay_, dbeta_;          // [rows, heads * (1 or head_size)], [rows, heads], accumulator type
  Tensor normed_out_, output_, rstd_;  // of a tile
};

/// Parameters of the roles before kOperands.
std::vector<ParameterShape> gate_and_norm_parameters(const ModelConfig& model, std::string_view gate, std::string_view norm);

/// A projection followed by a short convolution: channels of q, k and v side by side.
class ConvolvedProjection {
 public:
  ConvolvedProjection(std::int64_t channels, std::int64_t width, DType dtype, const Memory& memory, std::size_t slots)
      : channels_(channels), width_(width), dtype_(dtype), memory_(memory), halos_(slots) {}

  void plan(const Batch& batch, const comm::Communicator& communicator);
  void reserve(std::int64_t rows);
  double exposed_seconds() const { return convolution_->exposed_seconds(); }

  void project(const Tile& tile, ConstTensorView normed, ConstTensorView weight, StreamView stream);
  /// [rows, channels], of what project has made; `again` from the halo that the first pass left.
  TensorView forward(std::size_t slot, ConstTensorView weight, bool again, StreamView stream);
  /// Where the gradient of forward's result goes, [rows, channels].
  TensorView dresult() const { return top(dresult_, rows_); }
  void backward(std::size_t slot, ConstTensorView weight, TensorView dweight, StreamView stream);
  /// Adds to dweight and sum, as project_back does.
  void project_backward(const Tile& tile, ConstTensorView normed, ConstTensorView weight, TensorView dweight, TensorView sum,
                        StreamView stream);

 private:
  ConstTensorView taps(ConstTensorView weight) const { return weight.reshape({channels_, width_}); }
  std::int64_t channels_, width_;
  DType dtype_;
  Memory memory_;
  std::optional<DistributedConvolution> convolution_;
  std::int64_t rows_ = 0;
  Tensor before_, result_, dresult_;
  std::vector<Tensor> halos_;  // by slot, [units, width - 1, channels]
};

}  // namespace periplus::train
