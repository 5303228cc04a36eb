/* The C interface from C: a group of one, causal attention of two tokens whose result is known, and what is said of bad input. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "interop/c/periplus_c.h"

static int failures = 0;

static void require(int condition, const char* what) {
  if (condition) return;
  printf("FAILED: %s (%s)\n", what, periplus_error());
  ++failures;
}

static periplus_tensor tensor(void* data, int dims, int64_t* shape) {
  periplus_tensor t = {data, {1, 0}, dims, {2, 32, 1}, shape, NULL, 0};
  return t;
}

int main(void) {
  int64_t borders[] = {0, 2}, shape[] = {2, 1, 8}, of_lse[] = {2, 1}, rows[2] = {-1, -1};
  float before_q[24] = {0}, *q = before_q + 8, k[16] = {0}, v[16] = {0}, out[16], lse[2];
  const char* options[] = {"--strategy", "ring", "--scale", "1"};
  periplus_attention_spec spec = {.cu_seqlens = borders,
                                  .documents = 1,
                                  .q_heads = 1,
                                  .kv_heads = 1,
                                  .head_size = 8,
                                  .value_size = 8,
                                  .dtype = {2, 32, 1},
                                  .device = {1, 0},
                                  .options = options,
                                  .option_count = 4};
  periplus_group* group = NULL;
  periplus_attention* attention = NULL;
  periplus_tensor tq = tensor(q, 3, shape), tk = tensor(k, 3, shape), tv = tensor(v, 3, shape), to = tensor(out, 3, shape);
  periplus_tensor tl = tensor(lse, 2, of_lse);

  require(periplus_abi() == PERIPLUS_ABI, "interface");
  require(periplus_group_threads(1, 10, &group) == PERIPLUS_OK, "group");
  require(periplus_group_rank(group) == 0 && periplus_group_size(group) == 1, "a group of one");
  require(periplus_attention_make(group, &spec, &attention) == PERIPLUS_OK, "plan");
  require(periplus_attention_rows(attention, rows) == 2 && rows[0] == 0 && rows[1] == 1, "rows");
  q[8] = 1, k[0] = logf(3), v[0] = 4, v[8] = 8; /* the second token sees the first with weight 3/4 */
  require(periplus_attention_forward(attention, &tq, &tk, &tv, NULL, &to, &tl) == PERIPLUS_OK, "forward");
  require(fabsf(out[0] - 4) < 1e-5f && fabsf(out[8] - 5) < 1e-5f, "out");
  require(fabsf(lse[0]) < 1e-5f && fabsf(lse[1] - logf(4)) < 1e-5f, "lse");

  require(periplus_attention_forward(attention, &tq, NULL, &tv, NULL, &to, &tl) == PERIPLUS_BAD_INPUT, "a missing operand is refused");
  require(strstr(periplus_error(), "k") != NULL, "by its name");
  tq.ndim = 4;
  require(periplus_attention_forward(attention, &tq, &tk, &tv, NULL, &to, &tl) == PERIPLUS_BAD_INPUT, "four dimensions are refused");
  tq.ndim = 3, tq.device.device_type = 2;
  require(periplus_attention_forward(attention, &tq, &tk, &tv, NULL, &to, &tl) == PERIPLUS_BAD_INPUT, "so is another device");
  tq.device.device_type = 1, tq.data = q - 8, tq.byte_offset = 8 * sizeof(float), out[8] = 0;
  require(periplus_attention_forward(attention, &tq, &tk, &tv, NULL, &to, &tl) == PERIPLUS_OK && fabsf(out[8] - 5) < 1e-5f, "byte_offset");
  options[1] = "rung";
  periplus_attention* other = NULL;
  require(periplus_attention_make(group, &spec, &other) == PERIPLUS_BAD_INPUT && other == NULL, "a strategy that is none is refused");
  require(strstr(periplus_error(), "rung") != NULL, "with its value");

  spec.option_count = 2, spec.options = NULL;
  require(periplus_attention_make(group, &spec, &other) == PERIPLUS_BAD_INPUT, "options that are not there are refused");
  const char* file[] = {"--config=/dev/null"};
  spec.option_count = 1, spec.options = file;
  require(periplus_attention_make(group, &spec, &other) == PERIPLUS_BAD_INPUT && strstr(periplus_error(), "command line") != NULL,
          "files are not read");
  require(periplus_attention_make(NULL, &spec, &other) == PERIPLUS_BAD_INPUT, "a group that is NULL is refused");
  require(periplus_attention_make(group, NULL, &other) == PERIPLUS_BAD_INPUT, "so is a spec");
  require(periplus_attention_forward(NULL, &tq, &tk, &tv, NULL, &to, &tl) == PERIPLUS_BAD_INPUT, "and a plan");

  periplus_attention_free(attention);
  periplus_group_free(group);
  return failures;
}
