/* A conflict resolver: a value is a set of lines, and siblings are merged to the union of their lines.
 *
 * Verdicts must not depend on the order of the siblings, and merging a verdict again must change nothing. So the lines are sorted, and each
 * is there once. What is returned is allocated with malloc, and freed by the generated code; what is received is freed here. */

#include "conflict_resolver.h"

#include <stdlib.h>
#include <string.h>

/* What the plugin calls itself. A binding by name refers to it by this name. */
static const char NAME[] = "@NAME@";
static const char VERSION[] = "0.1.0";

void exports_witan_plugin_plugin_describe(exports_witan_plugin_plugin_manifest_t *ret) {
    conflict_resolver_string_dup(&ret->name, NAME);
    conflict_resolver_string_dup(&ret->version, VERSION);
    conflict_resolver_string_dup(&ret->hook, "conflict-resolver");
    ret->deterministic = true;
}

/* Called once on every new instance. This plugin takes no configuration. */
bool exports_witan_plugin_plugin_configure(conflict_resolver_list_u8_t *configuration,
                                           exports_witan_plugin_plugin_list_config_issue_t *err) {
    bool accepted = configuration->len == 0;
    conflict_resolver_list_u8_free(configuration);
    if (accepted) {
        return true;
    }
    err->len = 1;
    err->ptr = malloc(sizeof *err->ptr);
    conflict_resolver_string_dup(&err->ptr[0].at, "");
    conflict_resolver_string_dup(&err->ptr[0].problem, "this plugin takes no configuration; bind it without one");
    return false;
}

typedef struct {
    const uint8_t *start;
    size_t length;
} line_t;

/* Lines are sorted by their bytes, so that every coordinator sorts them alike. */
static int compare(const void *one, const void *other) {
    const line_t *a = one, *b = other;
    size_t common = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->start, b->start, common);
    return order != 0 ? order : (a->length > b->length) - (a->length < b->length);
}

/* Adds the lines of a value to `lines` and returns the number of them; with `lines` null it only counts. */
static size_t split(const conflict_resolver_list_u8_t *value, line_t *lines) {
    size_t count = 0, start = 0;
    for (size_t at = 0; at <= value->len; at++) {
        if (at < value->len && value->ptr[at] != '\n') {
            continue;
        }
        if (at > start) {
            if (lines != NULL) {
                lines[count] = (line_t){value->ptr + start, at - start};
            }
            count++;
        }
        start = at + 1;
    }
    return count;
}

/* The union of all lines, sorted, each with a line end. */
static void merge(const exports_witan_plugin_resolver_list_sibling_t *siblings, conflict_resolver_list_u8_t *merged) {
    size_t count = 0, bytes = 0, filled = 0;
    for (size_t i = 0; i < siblings->len; i++) {
        count += split(&siblings->ptr[i].value, NULL);
        bytes += siblings->ptr[i].value.len + 1;
    }
    line_t *lines = malloc((count + 1) * sizeof *lines);
    for (size_t i = 0; i < siblings->len; i++) {
        filled += split(&siblings->ptr[i].value, lines + filled);
    }
    qsort(lines, count, sizeof *lines, compare);
    merged->ptr = malloc(bytes);
    merged->len = 0;
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && compare(&lines[i - 1], &lines[i]) == 0) {
            continue;
        }
        memcpy(merged->ptr + merged->len, lines[i].start, lines[i].length);
        merged->len += lines[i].length;
        merged->ptr[merged->len++] = '\n';
    }
    free(lines);
}

bool exports_witan_plugin_resolver_resolve(exports_witan_plugin_resolver_question_t *question,
                                           exports_witan_plugin_resolver_verdict_t *ret,
                                           exports_witan_plugin_resolver_error_t *err) {
    bool text = true;
    for (size_t i = 0; i < question->siblings.len; i++) {
        const conflict_resolver_list_u8_t *value = &question->siblings.ptr[i].value;
        /* A value with a zero byte is no text. Nothing of it may be lost, so its readers get all siblings. */
        text = text && (value->len == 0 || memchr(value->ptr, 0, value->len) == NULL);
    }
    ret->tag = EXPORTS_WITAN_PLUGIN_RESOLVER_VERDICT_KEEP_ALL;
    if (text) {
        ret->tag = EXPORTS_WITAN_PLUGIN_RESOLVER_VERDICT_MERGED;
        merge(&question->siblings, &ret->val.merged);
    }
    exports_witan_plugin_resolver_question_free(question);
    return true;
}

/* The coordinator tries the laws on these before it binds the plugin. */
void exports_witan_plugin_resolver_samples(conflict_resolver_list_list_u8_t *ret) {
    static const char *const SAMPLES[] = {"a\nb\n", "b\nc", "\n\n", "x"};
    ret->len = sizeof SAMPLES / sizeof SAMPLES[0];
    ret->ptr = malloc(ret->len * sizeof *ret->ptr);
    for (size_t i = 0; i < ret->len; i++) {
        ret->ptr[i].len = strlen(SAMPLES[i]);
        ret->ptr[i].ptr = malloc(ret->ptr[i].len);
        memcpy(ret->ptr[i].ptr, SAMPLES[i], ret->ptr[i].len);
    }
}
