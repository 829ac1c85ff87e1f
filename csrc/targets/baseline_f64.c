#define FB_ISA 0
#define FB_DOUBLE 1
#define FB_TABLE fb_baseline_f64
#include "../core/table.h"
