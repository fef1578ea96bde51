package io.pflmobile.core.device

import java.time.DateTimeException
import java.time.Instant
import java.time.format.DateTimeFormatter
import kotlin.math.pow

/** Longest wait that an answer can impose, in seconds. */
private const val MOST_TOLD_S = 24 * 3600.0
private const val MOST_DOUBLINGS = 60

/**
 * Exponential backoff with jitter, so that devices that failed together do not come back together.
 *
 * @property attempts tries without progress before giving up
 * @property firstS seconds before the second try; doubled before each further one
 * @property mostS longest wait that is chosen here
 */
public class Backoff(
    public val attempts: Int = 6,
    public val firstS: Double = 0.5,
    public val mostS: Double = 60.0,
) {
    /**
     * Seconds to wait after a number of failures in a row. The wait doubles with each failure; a random factor between a half and one
     * keeps devices apart. It is never shorter than the server asked for.
     *
     * @param failures 1 or more
     * @param toldS `Retry-After` of the answer; null where there is none
     * @param draw for the jitter, from 0 to 1
     */
    internal fun pause(
        failures: Int,
        toldS: Double?,
        draw: Double,
    ): Double {
        val own = minOf(mostS, firstS * 2.0.pow(minOf(failures - 1, MOST_DOUBLINGS))) * (0.5 + 0.5 * draw)
        return if (toldS == null) own else maxOf(own, minOf(toldS, MOST_TOLD_S))
    }
}

/**
 * Seconds that a `Retry-After` header asks for, given as seconds or as a date; null when unreadable.
 *
 * @param now seconds since 1970
 */
internal fun retryAfter(
    value: String?,
    now: Double = System.currentTimeMillis() / 1000.0,
): Double? {
    val told = value?.trim()?.takeIf { it.isNotEmpty() } ?: return null
    if (told.all { it in '0'..'9' }) return told.toDouble()
    return try {
        maxOf(Instant.from(DateTimeFormatter.RFC_1123_DATE_TIME.parse(told)).toEpochMilli() / 1000.0 - now, 0.0)
    } catch (_: DateTimeException) {
        null
    }
}
