/* A routing hook: keys with the same text before the first '/' are stored on the same replicas. Replicas are read in the coordinator's own
 * order.
 *
 * A key must get the same partition key for ever: another rule is bound as a swap, which moves the tenant's records. What is returned is
 * allocated with malloc, and freed by the generated code; what is received is freed here. */

#include "routing_hook.h"

#include <stdlib.h>
#include <string.h>

/* What the plugin calls itself. A binding by name refers to it by this name. */
static const char NAME[] = "@NAME@";
static const char VERSION[] = "0.1.0";

void exports_witan_plugin_plugin_describe(exports_witan_plugin_plugin_manifest_t *ret) {
    routing_hook_string_dup(&ret->name, NAME);
    routing_hook_string_dup(&ret->version, VERSION);
    routing_hook_string_dup(&ret->hook, "routing-hook");
    ret->deterministic = true;
}

/* Called once on every new instance. This plugin takes no configuration. */
bool exports_witan_plugin_plugin_configure(routing_hook_list_u8_t *configuration,
                                           exports_witan_plugin_plugin_list_config_issue_t *err) {
    bool accepted = configuration->len == 0;
    routing_hook_list_u8_free(configuration);
    if (accepted) {
        return true;
    }
    err->len = 1;
    err->ptr = malloc(sizeof *err->ptr);
    routing_hook_string_dup(&err->ptr[0].at, "");
    routing_hook_string_dup(&err->ptr[0].problem, "this plugin takes no configuration; bind it without one");
    return false;
}

bool exports_witan_plugin_routing_partition_key(routing_hook_list_u8_t *key, routing_hook_list_u8_t *ret,
                                                exports_witan_plugin_routing_error_t *err) {
    const uint8_t *slash = memchr(key->ptr, '/', key->len);
    size_t prefix = slash == NULL ? key->len : (size_t)(slash - key->ptr);
    /* A partition key has at least one byte. The key's own bytes are handed on, and freed by the generated code. */
    ret->ptr = key->ptr;
    ret->len = prefix == 0 ? key->len : prefix;
    return true;
}

bool exports_witan_plugin_routing_prefer_replicas(routing_hook_list_u8_t *key,
                                                  exports_witan_plugin_routing_list_candidate_t *candidates,
                                                  routing_hook_list_u8_t *ret,
                                                  exports_witan_plugin_routing_error_t *err) {
    routing_hook_list_u8_free(key);
    exports_witan_plugin_routing_list_candidate_free(candidates);
    /* Replicas that are left out follow in the coordinator's own order. */
    ret->ptr = NULL;
    ret->len = 0;
    return true;
}
