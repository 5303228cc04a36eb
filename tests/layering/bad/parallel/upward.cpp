
#include "launch/main.h"
