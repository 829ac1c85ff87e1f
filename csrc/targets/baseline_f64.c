#define FB_ISA 0
#define FB_DOUBLE 1
#include "../core/table.h"
