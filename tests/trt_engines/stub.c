/* What the TensorRT bindings link against, as dummies: enough to import them where TensorRT is not installed.
   One library of all nine symbols serves under every name they ask for. */
#include <stddef.h>
#include <stdint.h>

void *createInferBuilder_INTERNAL(void *logger, int32_t version) { (void)logger; (void)version; return NULL; }
void *createInferRuntime_INTERNAL(void *logger, int32_t version) { (void)logger; (void)version; return NULL; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) {
    (void)engine; (void)logger; (void)version; return NULL;
}
void *getPluginRegistry(void) { return NULL; }
void *getBuilderPluginRegistry(int32_t capability) { (void)capability; return NULL; }
_Bool initLibNvInferPlugins(void *logger, const char *name) { (void)logger; (void)name; return 1; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) {
    (void)network; (void)logger; (void)version; return NULL;
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t version) {
    (void)refitter; (void)logger; (void)version; return NULL;
}
int getNvOnnxParserVersion(void) { return 0; }
