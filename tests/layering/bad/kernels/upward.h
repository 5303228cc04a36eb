#include "parallel/mask.h"
