/* A consistency policy: reads ask few replicas, everything else follows the coordinator's own rule.
 *
 * What is returned is allocated with malloc, and freed by the generated code; what is received is freed here. */

#include "consistency_policy.h"

#include <stdlib.h>
#include <string.h>

/* What the plugin calls itself. A binding by name refers to it by this name. */
static const char NAME[] = "@NAME@";
static const char VERSION[] = "0.1.0";

/* Replicas that must answer a read. The tenant's minimum level goes first. */
static uint8_t reads = 1;

void exports_witan_plugin_plugin_describe(exports_witan_plugin_plugin_manifest_t *ret) {
    consistency_policy_string_dup(&ret->name, NAME);
    consistency_policy_string_dup(&ret->version, VERSION);
    consistency_policy_string_dup(&ret->hook, "consistency-policy");
    ret->deterministic = true;
}

/* Called once on every new instance. Takes nothing, or `reads = N` with N from 1 to 5. */
bool exports_witan_plugin_plugin_configure(consistency_policy_list_u8_t *configuration,
                                           exports_witan_plugin_plugin_list_config_issue_t *err) {
    static const char KEY[] = "reads = ";
    const size_t key = sizeof KEY - 1;
    bool accepted = configuration->len == 0;
    if (configuration->len == key + 1 && memcmp(configuration->ptr, KEY, key) == 0) {
        uint8_t digit = configuration->ptr[key];
        accepted = digit >= '1' && digit <= '5';
        reads = accepted ? (uint8_t)(digit - '0') : reads;
    }
    consistency_policy_list_u8_free(configuration);
    if (accepted) {
        return true;
    }
    err->len = 1;
    err->ptr = malloc(sizeof *err->ptr);
    consistency_policy_string_dup(&err->ptr[0].at, "reads");
    consistency_policy_string_dup(&err->ptr[0].problem, "write `reads = N` with a number from 1 to 5");
    return false;
}

/* Replicas that a level requires. */
static uint8_t required(witan_plugin_types_level_t level, uint8_t replication_factor) {
    switch (level) {
    case WITAN_PLUGIN_TYPES_LEVEL_ONE:
        return 1;
    case WITAN_PLUGIN_TYPES_LEVEL_QUORUM:
        return replication_factor / 2 + 1;
    default:
        return replication_factor;
    }
}

bool exports_witan_plugin_policy_decide(exports_witan_plugin_policy_question_t *question,
                                        exports_witan_plugin_policy_answer_t *ret,
                                        exports_witan_plugin_policy_error_t *err) {
    const uint8_t factor = question->replication_factor;
    const uint8_t asked = required(question->level, factor), least = required(question->minimum, factor);
    ret->required = asked > least ? asked : least;
    if (question->operation == WITAN_PLUGIN_TYPES_OPERATION_READ) {
        ret->required = reads < factor ? reads : factor;
    }
    ret->deadline_ms = question->deadline_ms;
    ret->hedge_after_us.is_some = false;
    ret->shortfall.tag = EXPORTS_WITAN_PLUGIN_POLICY_SHORTFALL_FAIL;
    exports_witan_plugin_policy_question_free(question);
    return true;
}
