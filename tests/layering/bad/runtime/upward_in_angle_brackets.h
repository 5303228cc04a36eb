#include <parallel/plan/plan.h>
