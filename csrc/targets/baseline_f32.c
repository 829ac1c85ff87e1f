#define FB_ISA 0
#define FB_DOUBLE 0
#define FB_TABLE fb_baseline_f32
#include "../core/table.h"
