#include "version.h"

DEFINE_VERSION(that)
