package io.pflmobile.core.plan

import io.pflmobile.core.bundle.DeviceTensor
import io.pflmobile.core.bundle.Role
import io.pflmobile.core.bundle.TensorUpdate
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.UnknownNameException
import io.pflmobile.core.errors.near
import io.pflmobile.core.tensors.NameOrder

/** Whether a pattern means a tensor: `role:<role>`, `module:<name>`, or a name with `*` (any run) and `?` (any one). */
internal fun matches(
    pattern: String,
    tensor: DeviceTensor,
): Boolean =
    when {
        pattern.startsWith("role:") -> tensor.role.wireName == pattern.substring(5)
        pattern.startsWith("module:") -> tensor.module == pattern.substring(7)
        else -> fits(pattern.codePoints().toArray(), tensor.name.codePoints().toArray())
    }

/**
 * Whether a name fits a pattern, in at most the product of their lengths in steps: a regular expression with many `.*` would try their
 * lengths against each other, without end.
 */
private fun fits(
    pattern: IntArray,
    name: IntArray,
): Boolean {
    var at = 0
    var place = 0
    var star = -1 // the last * seen
    var behind = 0 // how far into the name it reaches so far
    while (place < name.size) {
        if (at < pattern.size && pattern[at] == '*'.code) {
            star = at++
            behind = place
        } else if (at < pattern.size && (pattern[at] == '?'.code || pattern[at] == name[place])) {
            at++
            place++
        } else if (star >= 0) {
            at = star + 1
            place = ++behind
        } else {
            return false
        }
    }
    return (at until pattern.size).all { pattern[it] == '*'.code }
}

/**
 * Names of the gradient-trained tensors that any pattern matches, in order of name.
 *
 * @throws UnknownNameException a pattern matches no tensor at all
 * @throws ConfigException a pattern matches only tensors that are not trained by gradients
 */
internal fun select(
    patterns: List<String>,
    table: List<DeviceTensor>,
): List<String> = patterns.flatMapTo(sortedSetOf(NameOrder)) { selectOne(it, table) }.toList()

private fun selectOne(
    pattern: String,
    table: List<DeviceTensor>,
): List<String> {
    val hit = table.filter { matches(pattern, it) }
    if (hit.isEmpty()) {
        val known = table.map { it.name } + table.map { "role:${it.role.wireName}" } + table.mapNotNull { it.module }.map { "module:$it" }
        throw UnknownNameException("the plan's pattern '$pattern' matches no tensor", mend = near(pattern, known))
    }
    return hit.filter { it.update == TensorUpdate.GRADIENT }.map { it.name }.ifEmpty {
        throw ConfigException(
            "the plan's pattern '$pattern' matches only '${hit.first().name}' and the like, which no gradient trains",
            mend = "leave it out of train phases; memorize and assign_slots phases write it",
        )
    }
}

/**
 * Names of the tensors whose change is sent: those selected, less the personal ones, in order of name.
 *
 * @throws UnknownNameException as [select]
 * @throws ConfigException as [select]; or a pattern selects personal tensors only
 */
internal fun uploaded(
    patterns: List<String>,
    table: List<DeviceTensor>,
): List<String> {
    val personal = table.filter { it.role == Role.PERSONAL }.mapTo(HashSet()) { it.name }
    return patterns
        .flatMapTo(sortedSetOf(NameOrder)) { pattern ->
            (selectOne(pattern, table) - personal).ifEmpty {
                throw ConfigException(
                    "the plan's upload pattern '$pattern' selects personal tensors only, which never leave a device",
                    mend = "name shared tensors, for instance with 'role:shared'",
                )
            }
        }.toList()
}

/** The name of a copy's tensor in an update or a saved state: `copy:<copy>:<tensor>`. */
internal fun copyKey(
    copy: String,
    tensor: String,
): String = "copy:$copy:$tensor"
