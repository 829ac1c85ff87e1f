#define FB_ISA 2
#define FB_DOUBLE 0
#include "../core/table.h"
