package io.pflmobile.core.personal

import io.pflmobile.core.bundle.Bundle
import io.pflmobile.core.bundle.EncoderEntry
import io.pflmobile.core.bundle.TensorSpec
import io.pflmobile.core.device.DeviceFacts
import io.pflmobile.core.device.Event
import io.pflmobile.core.device.Model
import io.pflmobile.core.device.PrivacyPolicy
import io.pflmobile.core.engines.Session
import io.pflmobile.core.engines.chosen
import io.pflmobile.core.engines.goldenCheck
import io.pflmobile.core.engines.openSession
import io.pflmobile.core.errors.ConfigException
import io.pflmobile.core.errors.DataException
import io.pflmobile.core.errors.DeviceFolderException
import io.pflmobile.core.errors.NoExamplesException
import io.pflmobile.core.errors.PflException
import io.pflmobile.core.errors.StateException
import io.pflmobile.core.errors.StorageFullException
import io.pflmobile.core.errors.TensorMismatchException
import io.pflmobile.core.errors.UnwritableException
import io.pflmobile.core.files.AtomicFiles
import io.pflmobile.core.files.Disk
import io.pflmobile.core.files.FolderLock
import io.pflmobile.core.files.RealDisk
import io.pflmobile.core.files.diskErrors
import io.pflmobile.core.files.privateFolder
import io.pflmobile.core.local.Checkpoints
import io.pflmobile.core.local.Evaluator
import io.pflmobile.core.local.Example
import io.pflmobile.core.local.ExampleStore
import io.pflmobile.core.local.Examples
import io.pflmobile.core.local.Forgotten
import io.pflmobile.core.local.Payload
import io.pflmobile.core.local.Progress
import io.pflmobile.core.local.Reason
import io.pflmobile.core.local.Status
import io.pflmobile.core.local.UserResult
import io.pflmobile.core.local.Work
import io.pflmobile.core.local.forget
import io.pflmobile.core.local.isForgotten
import io.pflmobile.core.local.served
import io.pflmobile.core.local.textEncoder
import io.pflmobile.core.local.wordsToForget
import io.pflmobile.core.plan.Plan
import io.pflmobile.core.rows.Rows
import io.pflmobile.core.rows.checkRows
import io.pflmobile.core.rows.stackRows
import io.pflmobile.core.state.ModelId
import io.pflmobile.core.state.PersonalState
import io.pflmobile.core.state.PersonalStateStore
import io.pflmobile.core.state.StateWarning
import io.pflmobile.core.state.VersionInfo
import io.pflmobile.core.tensors.DType
import io.pflmobile.core.tensors.FloatTensor
import io.pflmobile.core.tensors.LongTensor
import io.pflmobile.core.tensors.RawTensor
import io.pflmobile.core.tensors.Tensor
import io.pflmobile.core.text.BlockList
import io.pflmobile.core.text.Predicted
import io.pflmobile.core.text.PrefixIndex
import io.pflmobile.core.text.Suggestion
import io.pflmobile.core.text.TextContext
import io.pflmobile.core.text.TextEncoder
import io.pflmobile.core.text.WordTokenizer
import io.pflmobile.core.text.complete
import io.pflmobile.core.text.suggest
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.async
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.isActive
import kotlinx.coroutines.supervisorScope
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.atomic.AtomicInteger
import kotlin.coroutines.CoroutineContext
import kotlin.io.path.exists

/**
 * A model that learns from its user, on the device: what the user did is remembered, what was learned from it is kept only where the
 * guard finds it better, and all of it can be looked at, forgotten and erased. Nothing is sent but by [takePart].
 *
 *     FOLDER/state/      the personal state, as [PersonalStateStore] keeps it
 *     FOLDER/last.json   the last training, for a status screen
 *     FOLDER/under-way   which examples a training of which there is a checkpoint began with
 *     FOLDER/erasing     there while everything is erased, so that the next opening ends what a killed process began
 *     FOLDER/paused      there while the user paused learning
 *     FOLDER/rounds/     the device of a federation, as [io.pflmobile.core.device.DeviceFolder] keeps it, from the first round on
 *     FOLDER/unpacked/   the bundle
 *
 * Calls may come from any thread, and none blocks it. A suggestion waits for one step of training at most. Forgetting, reverting and
 * erasing stop a training under way, within one step.
 *
 * @property options as it was opened
 */
public class PersonalModel private constructor(
    private val home: Path,
    private val bundle: Bundle,
    public val options: ModelOptions,
    private val examples: ExampleStore,
    private val lock: AutoCloseable,
    private val clock: () -> Double,
    context: CoroutineContext,
    disk: Disk,
) {
    private val id = ModelId.of(bundle.manifest)
    private val files = AtomicFiles(disk)
    private val initial = bundle.values()
    private val plan = Plan.load(bundle.planJson())
    private val encoder = textEncoder(bundle)
    private val vocabulary by lazy { (encoder?.tokenizer as? WordTokenizer)?.let(::PrefixIndex) }
    private val store = PersonalStateStore(home.resolve("state"), id, VERSIONS, clock, disk, STATE_WAIT_MS)
    private val notes = TrainingNotes(home, files)
    private val rounds = Rounds(home.resolve(ROUNDS), id, store, clock)
    private val blockedWords =
        if (options.blockedWords.isEmpty()) {
            emptySet()
        } else {
            wordsToForget(options.blockedWords.toList(), encoder?.tokenizer?.rules ?: throw noText("blocked words"))
        }
    private val engine =
        EngineRoom(options.engineIdleMs, context) { openSession(bundle, options.engines, options.trusted, options.threads) }

    /** Held by whatever changes the personal state. */
    private val changing = Mutex()
    private val training = Mutex()

    /** Held while a text is kept, so that none slips in that has a word which is being forgotten. */
    private val keeping = Any()
    private val stops = AtomicInteger()

    /** Rounds under way, which may wait for a network. */
    @Volatile private var taking: Job? = null

    @Volatile private var closed = false

    @Volatile private var paused = home.resolve(PAUSED).exists()

    /** What serves now. */
    private class Serving(
        val version: Int,
        val state: PersonalState?,
        val tensors: Map<String, Tensor>,
        val encoder: TextEncoder?,
        val blocked: BlockList,
        val warnings: List<StateWarning>,
    )

    @Volatile private var serving: Serving

    init {
        if (home.resolve(ERASING).exists()) eraseAll()
        // the last training was of what is gone
        if (store.carryOver(sameWeights = bundle.manifest.frozenSha256 != null, discard = options.discardOtherState)) notes.erase()
        rounds.keepServes()
        serving = load()
    }

    /** Name, version and fingerprint of the bundle. */
    public val model: ModelId get() = id

    /** The folder where everything personal lies. */
    public val folder: Path get() = home

    /**
     * ISO 15924 codes of scripts in which the model is of no use (Thai has words without spaces, for instance), as the bundle says it, so
     * that an app can tell its users; empty where it does not say.
     */
    public val scriptsNotServed: Set<String> =
        (bundle.manifest.encoder as? EncoderEntry.Text)
            ?.scriptsNotServed
            .orEmpty()
            .toSet()

    /** Whether the bundle takes texts; else it takes arrays. */
    public val takesText: Boolean get() = encoder != null

    private fun load(): Serving {
        val loaded = store.load()
        val sets = mapOf("initial" to initial, "global" to initial)
        val blocked = store.blocked()
        val words = loaded.state?.words.orEmpty()
        return Serving(
            loaded.version,
            loaded.state,
            served(rounds.serves(loaded.version) ?: plan.serve, Work.of(loaded.state, initial), sets),
            encoder?.let { if (blocked.size == 0) it.withWords(words) else it.withBlocked(blocked).withWords(words) },
            blocked,
            loaded.warnings,
        )
    }

    // ---- what the user did

    /**
     * Keeps a text to learn from.
     *
     * @throws ConfigException the bundle takes arrays
     * @throws StateException the examples cannot be used, or the model is closed
     */
    public suspend fun remember(text: String): RememberResult {
        val encoder = encoder ?: throw noText("a text")
        return io {
            val pieces = encoder.tokenizer.words(text)
            val words = encoder.tokenizer.rules.cut(text)
            when {
                paused -> RememberResult.Refused(RememberResult.Reason.PAUSED)
                pieces.isEmpty() -> RememberResult.Refused(RememberResult.Reason.EMPTY)
                else -> synchronized(keeping) { if (words.any(::isBlocked)) BLOCKED else keep(Payload.Text(text)) }
            }
        }
    }

    /**
     * Keeps one example to learn from.
     *
     * @param arrays as the inputs of the program `gradients` name them, without the first axis, or with one of 1; `weight` may be
     *   missing and is 1 then
     * @throws ConfigException the bundle takes texts
     * @throws TensorMismatchException the arrays are not those of the bundle
     * @throws DataException a weight is negative, a number is not finite, or a label is none of the model's classes
     * @throws StateException the examples cannot be used, or the model is closed
     */
    public suspend fun remember(arrays: Map<String, Tensor>): RememberResult {
        if (encoder != null) throw ConfigException("the bundle takes texts, not arrays", "give a text")
        val row = row("gradients", arrays)
        checkRows(row, "example")
        checkLabels(row)
        return io {
            when {
                paused -> RememberResult.Refused(RememberResult.Reason.PAUSED)
                (row.getValue(WEIGHT) as FloatTensor).values.all { it == 0f } -> RememberResult.Refused(RememberResult.Reason.EMPTY)
                else -> keep(Payload.Arrays(row))
            }
        }
    }

    /**
     * The same for a classifier of [features] in one array.
     *
     * @param features as many as the model takes, in its order
     * @param label from 0 to the number of classes less 1
     */
    public suspend fun remember(
        features: FloatArray,
        label: Int,
    ): RememberResult = remember(mapOf(featuresOf("gradients", features), LABELS to LongTensor(longArrayOf(label.toLong()), listOf(1))))

    /** A label that is no class would spoil every batch that it is in. */
    private fun checkLabels(row: Rows) {
        val classes = bundle.manifest.task.vocabulary ?: return
        val wrong = (row[LABELS] as? LongTensor)?.values?.find { it < 0 || it >= classes } ?: return
        throw DataException(
            "the label $wrong is not in 0..${classes - 1}",
            if (wrong < 0) {
                "a label that must not count gets the weight 0 and any class, 0 for instance"
            } else {
                "number the classes from 0, or export the model with as many outputs as there are classes"
            },
        )
    }

    private fun keep(payload: Payload): RememberResult =
        try {
            examples.add(payload)?.let(RememberResult::Kept) ?: RememberResult.Refused(RememberResult.Reason.STORAGE_FULL)
        } catch (_: StorageFullException) {
            RememberResult.Refused(RememberResult.Reason.STORAGE_FULL)
        }

    private fun isBlocked(word: String) = isForgotten(word, blockedWords) || serving.blocked.hides(word)

    // ---- what the model says

    /**
     * At most [k] likely next words, the likeliest first; none that is blocked or that the user wants forgotten.
     *
     * @param text what was typed, up to the end of a word
     * @param k of a model of words no more than its `predict` gives: `top_k` of the exported task
     * @throws ConfigException the bundle takes arrays
     * @throws io.pflmobile.core.errors.EngineException the engine cannot run the bundle
     * @throws StateException the model is closed
     */
    public suspend fun suggest(
        text: String,
        k: Int = 3,
    ): List<Suggestion> {
        if (encoder == null) throw noText("a text")
        return computing {
            val now = serving
            val context = currentCoroutineContext()
            engine.use { session ->
                val predict = { typed: TextContext ->
                    context.ensureActive() // who typed on asks for something else
                    val outputs = session.run(PREDICT, now.tensors + mapOf("tokens" to typed.tokens, "position" to typed.position))
                    Predicted(longs(outputs, "top_ids"), floats(outputs, "top_probs"))
                }
                suggest(predict, checkNotNull(now.encoder), text, k).filterNot { isBlocked(it.word) }
            }
        }
    }

    /**
     * At most [k] words that begin with [prefix] and are longer: the likely ones first, then the user's own, then those of the vocabulary,
     * the most used first; none that is blocked or that the user wants forgotten.
     *
     * @param text what stands before the word that was begun
     * @param prefix what was typed of it
     * @throws ConfigException the bundle takes arrays
     * @throws io.pflmobile.core.errors.EngineException the engine cannot run the bundle
     * @throws StateException the model is closed
     */
    public suspend fun complete(
        text: String,
        prefix: String,
        k: Int = 3,
    ): List<String> {
        // over subwords each further word costs calls of the program
        val likely = suggest(text, if (vocabulary == null) MOST_WHOLE else Int.MAX_VALUE).map { it.word }
        return computing {
            val words = vocabulary?.run { startingWith(prefix).asSequence().map { checkNotNull(encoder).word(it) } }
            complete(likely, serving.state?.words.orEmpty(), words?.filterNot(::isBlocked), prefix, k)
        }
    }

    /**
     * What the model says of one example.
     *
     * @param arrays as the inputs of the program `predict` name them, without the first axis, or with one of 1
     * @throws ConfigException the bundle takes texts
     * @throws TensorMismatchException the arrays are not those of the bundle
     * @throws io.pflmobile.core.errors.EngineException the engine cannot run the bundle
     * @throws StateException the model is closed
     */
    public suspend fun predict(arrays: Map<String, Tensor>): Prediction {
        if (encoder != null) throw ConfigException("the bundle takes texts, not arrays", "call suggest")
        val row = row(PREDICT, arrays)
        return computing {
            val now = serving
            Prediction(engine.use { it.run(PREDICT, now.tensors + row) })
        }
    }

    /** The same of [features] in one array. */
    public suspend fun predict(features: FloatArray): Prediction = predict(mapOf(featuresOf(PREDICT, features)))

    // ---- learning

    /**
     * Learns from the examples by the bundle's plan, as `pfl personalize` does: the newest measure what it brought, and the guard adopts
     * it only if it is better. It runs until it is done; the coroutine may be cancelled, which is honoured within one step. Cancelled or
     * killed, the next call goes on from the last checkpoint, with the examples that it began with.
     *
     * @param onProgress called after each step, on another thread
     */
    public suspend fun personalize(onProgress: (Progress) -> Unit = {}): PersonalizeResult {
        if (!training.tryLock()) {
            return PersonalizeResult.Failed(StateException("training is under way already", "wait until it has ended"))
        }
        try {
            return changing.withLock { computing { train(onProgress) } }
        } finally {
            training.unlock()
        }
    }

    private suspend fun train(onProgress: (Progress) -> Unit): PersonalizeResult {
        if (paused) return PersonalizeResult.Paused
        val context = currentCoroutineContext()
        var have = 0
        return try {
            val given = givenExamples()
            have = given.size
            val result = engine.use { train(it, given, context, onProgress) }
            finished(result)
        } catch (_: StoppedException) {
            PersonalizeResult.Cancelled
        } catch (_: NoExamplesException) {
            notes.done()
            PersonalizeResult.NotEnoughExamples(have)
        } catch (error: PflException) {
            PersonalizeResult.Failed(error)
        } finally {
            serving = load()
        }
    }

    private suspend fun train(
        session: Session,
        given: Examples,
        context: CoroutineContext,
        onProgress: (Progress) -> Unit,
    ): UserResult {
        val stopping = { paused || closed || stops.get() > 0 }
        val began = store.current
        // Between steps the trainer looks itself, and keeps a checkpoint; where it measures, each batch may be the last. What is adopted is
        // measured to the end, so that the report is of what serves.
        val watched =
            object : Session by session {
                override fun run(
                    program: String,
                    inputs: Map<String, Tensor>,
                ): Map<String, Tensor> {
                    if (program == EVALUATE && (!context.isActive || stopping()) && store.current == began) {
                        context.ensureActive()
                        throw StoppedException()
                    }
                    return session.run(program, inputs)
                }
            }
        val checkpoints = Checkpoints(store.checkpoint, id, options.checkpointEvery)
        val evaluator = Evaluator(bundle, watched)
        evaluator.trainer.servesBefore = rounds.serves(began)
        return evaluator.personalize(
            given,
            options.test,
            store = store,
            checkpoints = checkpoints,
            stop = stopping,
            onProgress = onProgress,
        )
    }

    // ---- rounds with other devices

    /**
     * Takes part in a federation: asks for a task once, learns by it from the kept examples, and sends what the policy lets go. It learns
     * on the personal state of this model, by the guard as ever; examples, words and state stay here. One training runs at a time. The
     * engine is loaded and checked only once there is a task.
     *
     * Cancelled, killed or without a network, nothing is lost: a finished update waits, and the next call sends it first of all. Pause,
     * forget, revert and erase stop it, within one step; what was made of something that is forgotten is sent no more. After [revert] an
     * update that waits is still sent, as it was made of examples that are still there.
     *
     * @param federation where; a device that is enrolled at another server leaves it, and what waited for it is sent no more
     * @param facts told to the aggregator, so that it asks only a phone that can
     * @param rounds go on until so many updates were accepted, or the federation trains no more; null asks once
     * @param onEvent told what happens, on another thread
     */
    public suspend fun takePart(
        federation: Federation,
        facts: DeviceFacts = DeviceFacts(),
        rounds: Int? = null,
        onEvent: (Event) -> Unit = {},
    ): RoundsResult {
        if (paused) return RoundsResult.Paused
        if (!training.tryLock()) {
            return RoundsResult.Failed(StateException("training is under way already", "wait until it has ended"))
        }
        try {
            return changing.withLock {
                computing { stoppable { takePartNow(federation, facts, rounds, onEvent) } ?: RoundsResult.Cancelled }
            }
        } finally {
            training.unlock()
        }
    }

    /** The same of a federation that needs no more than an address. */
    public suspend fun takePart(
        server: String,
        policy: PrivacyPolicy = PrivacyPolicy(),
        onEvent: (Event) -> Unit = {},
    ): RoundsResult = takePart(Federation(server, policy), onEvent = onEvent)

    private suspend fun takePartNow(
        federation: Federation,
        facts: DeviceFacts,
        count: Int?,
        onEvent: (Event) -> Unit,
    ): RoundsResult {
        return try {
            val given = asExamples(usable())
            val few = given.size < FEWEST
            if (few && !rounds.waits) return RoundsResult.NotEnoughExamples(given.size)
            val result =
                EngineOnDemand(currentCoroutineContext()).use { session ->
                    rounds.takePart(federation, { Model.unchecked(bundle, session) }, given, options.test, facts, count, few, onEvent)
                }
            if (few && result is RoundsResult.NoRound) RoundsResult.NotEnoughExamples(given.size) else result
        } catch (error: PflException) {
            RoundsResult.Failed(error)
        } finally {
            serving = load()
        }
    }

    /**
     * The engine, from the first call on, which checks it. Where the work was stopped, no golden call and no batch of a measurement begins;
     * between steps the trainer looks itself, and keeps a checkpoint.
     */
    private inner class EngineOnDemand(
        private val work: CoroutineContext,
    ) : Session {
        private var entered: Session? = null

        override val name = chosen(bundle.manifest, options.engines).name
        override val programs = bundle.manifest.programs.associateBy { it.name }

        override fun run(
            program: String,
            inputs: Map<String, Tensor>,
        ): Map<String, Tensor> {
            val session = entered ?: checked()
            if (program == EVALUATE) work.ensureActive()
            return session.run(program, inputs)
        }

        private fun checked(): Session {
            val session = engine.enter()
            var whole = false
            try {
                val watched =
                    object : Session by session {
                        override fun run(
                            program: String,
                            inputs: Map<String, Tensor>,
                        ): Map<String, Tensor> {
                            work.ensureActive()
                            return session.run(program, inputs)
                        }
                    }
                goldenCheck(bundle, watched).require()
                whole = true
            } finally {
                if (whole) entered = session else engine.leave()
            }
            return session
        }

        override fun close() {
            if (entered != null) engine.leave()
            entered = null
        }
    }

    /** What [step] gives; null where something else had to be done first. */
    private suspend fun <T> stoppable(step: suspend () -> T): T? =
        supervisorScope {
            val work = async { step() }
            taking = work
            if (stops.get() > 0 || paused || closed) stopTaking()
            try {
                work.await()
            } catch (_: StoppedException) {
                null
            } finally {
                taking = null
            }
        }

    private fun stopTaking() {
        taking?.cancel(StoppedException())
    }

    /**
     * Ends the membership, at whichever server it is: what waits is sent no more, and the aggregator forgets the device. What was learned
     * stays; what was sent cannot be taken back. Without a network the device has left all the same, and the aggregator is told by the next
     * call of this or of [takePart]; nothing else waits for that.
     *
     * @param federation how aggregators are reached, as in [takePart]
     */
    public suspend fun leave(federation: Federation): LeaveResult =
        try {
            if (change { rounds.end() }) computing { rounds.tell(federation) } else LeaveResult.NotThere
        } catch (error: DeviceFolderException) {
            LeaveResult.Failed(error)
        } catch (error: UnwritableException) {
            LeaveResult.Failed(error)
        } catch (error: StorageFullException) {
            LeaveResult.Failed(error)
        }

    /** Those that a training under way began with, where they are all there still; else all. */
    private fun givenExamples(): Examples {
        val all = usable()
        val began = notes.began().takeIf { store.checkpoint.exists() }
        val those = all.takeIf { began == null } ?: all.filter { it.id <= checkNotNull(began).last }
        val same = began != null && those.size == began.count && those.firstOrNull()?.id == began.first
        val given = if (same) those else all
        if (!same && given.isNotEmpty()) notes.begin(Began(given.first().id, given.last().id, given.size))
        return asExamples(given)
    }

    private fun usable(): List<Example> = examples.examples().filter(::isUsable)

    private fun asExamples(given: List<Example>): Examples =
        if (encoder != null) {
            Examples.Texts(given.map { (it.payload as Payload.Text).text })
        } else {
            Examples.Arrays(if (given.isEmpty()) emptyMap() else stackRows(given.map { (it.payload as Payload.Arrays).arrays }))
        }

    /** What this bundle can learn from; others were kept for another one. */
    private fun isUsable(example: Example): Boolean =
        when (val payload = example.payload) {
            is Payload.Text -> {
                encoder != null &&
                    encoder.tokenizer.rules
                        .cut(payload.text)
                        .none(::isBlocked)
            }

            is Payload.Arrays -> {
                encoder == null &&
                    bundle.manifest.batchInputs("gradients").all { input ->
                        payload.arrays[input.name]?.let { it.dtype == input.dtype && it.shape == one(input).shape } == true
                    }
            }
        }

    private fun finished(result: UserResult): PersonalizeResult {
        val report = result.report
        if (report.status == Status.CANCELLED) return PersonalizeResult.Cancelled
        val adopted = report.status == Status.ADOPTED
        val count = result.train + result.holdout + result.test
        notes.done()
        if (report.status == Status.SKIPPED && report.guard?.reason == Reason.TOO_FEW_EXAMPLES) {
            return PersonalizeResult.NotEnoughExamples(count)
        }
        notes.write(LastTraining(clock(), adopted, store.current, result.before, result.after, report.steps, count))
        return if (adopted) PersonalizeResult.Adopted(result) else PersonalizeResult.Kept(result)
    }

    // ---- what the user controls

    /** What a status screen shows. */
    public suspend fun status(): ModelStatus =
        io {
            val now = serving
            ModelStatus(
                id,
                now.version,
                examples.count(),
                now.state
                    ?.words
                    .orEmpty()
                    .size,
                paused,
                training.isLocked,
                engine.isOpen,
                notes.last(),
                now.warnings,
                rounds.status(),
            )
        }

    /** The kept examples, oldest first; with [newest] only so many of the newest. */
    public suspend fun examples(newest: Int? = null): List<Example> = io { examples.examples(newest) }

    /** The user's own words that have a slot. */
    public suspend fun learnedWords(): List<String> = io { serving.state?.words.orEmpty() }

    /** The saved versions of the personal state, oldest first. */
    public suspend fun versions(): List<VersionInfo> = io { store.versions() }

    /**
     * Erases an example; false if there was none with this id. What was learned from it stays until the model learns anew: [revert] or
     * [eraseEverything] take that back. Updates that wait to be sent are thrown away.
     */
    public suspend fun forgetExample(id: Long): Boolean =
        change {
            rounds.discard()
            examples.erase(listOf(id)) == 1
        }

    /**
     * Forgets a word: in every saved state, in the examples that hold it, in what waits to be sent, and for the future.
     *
     * @throws ConfigException it is no word, or several; or the bundle takes arrays
     * @throws StateException the state cannot be used
     * @throws StorageFullException the disk is full; call again once there is space
     */
    public suspend fun forgetWord(word: String): Forgotten {
        val encoder = encoder ?: throw noText("a word")
        return change {
            rounds.discard()
            val forgotten = forget(store, listOf(word), encoder, bundle.manifest.tensors, initial)
            // A text that comes now is refused, and one that came before is among those below.
            synchronized(keeping) { serving = load() }
            val with =
                examples.examples().filter { example ->
                    val text = (example.payload as? Payload.Text)?.text.orEmpty()
                    encoder.tokenizer.rules
                        .cut(text)
                        .any { isForgotten(it, forgotten.words) }
                }
            examples.erase(with.map { it.id })
            forgotten
        }
    }

    /**
     * Makes an earlier version of the personal state serve; returns its number.
     *
     * @param version which; 0 for the shipped model; null for the one before the current
     * @throws StateException there is no such version, or it is damaged; nothing changes
     */
    public suspend fun revert(version: Int? = null): Int = change { rounds.revert(version) }

    /**
     * Erases every example, all that was learned and everything that tells of it; the shipped model serves again. The device of a
     * federation loses its credential and what waits to be sent, but not the count of what was sent: see [leave] for telling the
     * aggregator too. Killed or failed on the way, it is ended when the model is next opened.
     */
    public suspend fun eraseEverything(): Unit = change { eraseAll() }

    private fun eraseAll() {
        mark(home, files)
        // each of them, whatever goes wrong with another
        val faults =
            listOf(
                { rounds.erase() },
                { store.erase() },
                { examples.eraseAll() },
                { notes.erase() },
            ).mapNotNull { runCatching(it).exceptionOrNull() }
        faults.firstOrNull()?.let { throw it }
        files.delete(home.resolve(ERASING))
    }

    /** Stops remembering and learning until [resume]; training under way ends within one step. It outlives the process. */
    public suspend fun pause() {
        paused = true
        stopTaking()
        io { files.write(home.resolve(PAUSED), ByteArray(0)) }
    }

    /** Ends [pause]. */
    public suspend fun resume() {
        io { files.delete(home.resolve(PAUSED)) }
        paused = false
    }

    /**
     * Frees everything, once each [open] of this model was closed. A training under way ends within one step, with a checkpoint.
     *
     * A process that serves suggestions need not call it: an idle engine is freed by itself.
     */
    public suspend fun close() {
        withContext(NonCancellable) {
            if (!leave(this@PersonalModel)) return@withContext
            closed = true
            stopTaking()
            changing.withLock {
                withContext(Dispatchers.IO) {
                    // one after the other, whatever fails
                    lock.use { bundle.use { examples.use { rounds.use { engine.close() } } } }
                }
            }
        }
    }

    // ---- parts

    private suspend fun <T> change(step: () -> T): T =
        stopping {
            changing.withLock {
                io {
                    try {
                        step()
                    } finally {
                        serving = load()
                    }
                }
            }
        }

    /** Does [step], for which training under way has to end. */
    private suspend fun <T> stopping(step: suspend () -> T): T {
        stops.incrementAndGet()
        try {
            stopTaking()
            return step()
        } finally {
            stops.decrementAndGet()
        }
    }

    private suspend fun <T> io(step: () -> T): T =
        withContext(Dispatchers.IO) {
            if (closed) throw closedModel()
            step()
        }

    private suspend fun <T> computing(step: suspend () -> T): T =
        withContext(Dispatchers.Default) {
            if (closed) throw closedModel()
            step()
        }

    /** One example as a row of a batch of one. */
    private fun row(
        program: String,
        arrays: Map<String, Tensor>,
    ): Rows {
        val inputs = bundle.manifest.batchInputs(program)
        (arrays.keys - inputs.mapTo(HashSet()) { it.name }).firstOrNull()?.let {
            throw TensorMismatchException("'$it' is no input of '$program'", "give ${inputs.joinToString { input -> input.name }}")
        }
        return inputs.associate { input ->
            val wanted = one(input)
            val value =
                arrays[input.name] ?: if (input.name == WEIGHT) {
                    FloatTensor(FloatArray(wanted.shape.fold(1, Int::times)) { 1f }, wanted.shape)
                } else {
                    throw TensorMismatchException("'${input.name}' is missing", "give ${inputs.joinToString { it.name }}")
                }
            if (value.dtype != wanted.dtype || (value.shape != wanted.shape && value.shape != wanted.shape.drop(1))) {
                throw TensorMismatchException("'${input.name}' is ${value.signature}, not ${wanted.signature}", "convert it")
            }
            if (value is FloatTensor && !value.values.all { it.isFinite() }) {
                throw DataException("'${input.name}' has a number that is not finite", "leave the example out")
            }
            input.name to reshaped(value, wanted.shape)
        }
    }

    private fun one(input: TensorSpec) = input.copy(shape = listOf(1) + input.shape.drop(1))

    private fun featuresOf(
        program: String,
        features: FloatArray,
    ): Pair<String, Tensor> {
        val inputs = bundle.manifest.batchInputs(program).filter { it.name != WEIGHT && it.name != LABELS }
        val input = inputs.singleOrNull()?.takeIf { it.dtype == DType.FLOAT32 }
        if (encoder != null || input == null) {
            throw ConfigException(
                "the bundle does not take one array of float32",
                "give arrays by name: ${inputs.joinToString { it.name }}",
            )
        }
        val shape = one(input).shape
        if (shape.fold(1, Int::times) != features.size) {
            throw TensorMismatchException("there are ${features.size} features, not ${shape.drop(1)}", "give all of them, in order")
        }
        return input.name to FloatTensor(features.copyOf(), shape)
    }

    private class StoppedException : CancellationException("training was stopped")

    /** Opens and erases models. */
    public companion object {
        private const val PREDICT = "predict"
        private const val EVALUATE = "evaluate"
        private const val WEIGHT = "weight"
        private const val LABELS = "labels"
        private const val PAUSED = "paused"
        private const val UNPACKED = "unpacked"
        private const val ROUNDS = "rounds"
        private const val ERASING = "erasing"

        /** Words that are put together of subwords for one completion. */
        private const val MOST_WHOLE = 12

        /** One to learn from, one for the guard, one to test on. */
        private const val FEWEST = 3
        private val BLOCKED = RememberResult.Refused(RememberResult.Reason.BLOCKED)

        /** Where the app's copy of its bundle may lie before the first opening. */
        private const val SHIPPED = "bundle"
        private val NAMES = setOf("state", UNPACKED, PAUSED, ERASING, ROUNDS, FolderLock.NAME)

        private class Opened(
            val model: PersonalModel,
            val source: Path,
            var users: Int,
        )

        private val opening = Mutex()
        private val opened = HashMap<Path, Opened>()

        /**
         * Opens the model of a bundle with what was learned before. A second opening of the same folder in this process gives the same
         * model; it is closed when each was closed.
         *
         * @param source the bundle: its folder or `.pflb` file
         * @param folder where everything personal is kept, and nothing else; made when missing, for its owner alone. One folder for each
         *   bundle name
         * @param options must be those of the first opening
         * @param examples opens where the user's examples are kept
         * @param clock seconds since 1970
         * @throws io.pflmobile.core.errors.BundleException the bundle cannot be used
         * @throws StateException another process has the folder open, or what lies there was learned with a bundle that does not fit
         *   this one
         * @throws ConfigException this process has it open with other options; the bundle does not fit itself or the options; or the
         *   folder holds something else
         * @throws StorageFullException no room to unpack the bundle
         */
        public suspend fun open(
            source: Path,
            folder: Path,
            options: ModelOptions = ModelOptions(),
            clock: () -> Double = { System.currentTimeMillis() / 1000.0 },
            examples: (Path) -> ExampleStore,
        ): PersonalModel = open(source, folder, options, clock, Dispatchers.Default, RealDisk, examples)

        internal suspend fun open(
            source: Path,
            folder: Path,
            options: ModelOptions,
            clock: () -> Double,
            context: CoroutineContext,
            disk: Disk,
            examples: (Path) -> ExampleStore,
        ): PersonalModel {
            var counted: PersonalModel? = null
            try {
                return opening.withLock {
                    withContext(Dispatchers.IO) {
                        privateFolder(folder) { it in NAMES }
                        val home = diskErrors(folder) { folder.toRealPath() }
                        val there = opened[home]
                        if (there == null) {
                            ofItsOwn(home)
                            val model = openFirst(source, home, options, clock, context, disk, examples)
                            opened[home] = Opened(model, source.toAbsolutePath(), 1)
                            return@withContext model.also { counted = it }
                        }
                        if (there.model.options != options || there.source != source.toAbsolutePath()) {
                            throw ConfigException(
                                "$home is open already with other options, or of another bundle",
                                "give the same, or a folder of its own for each bundle",
                            )
                        }
                        there.users++
                        there.model.also { counted = it }
                    }
                }
            } catch (error: CancellationException) {
                // nobody gets it, so nobody would close it
                counted?.close()
                throw error
            }
        }

        /** Whether this process has the model of a folder open. */
        public suspend fun isOpen(folder: Path): Boolean =
            opening.withLock { folder.exists() && diskErrors(folder) { folder.toRealPath() } in opened }

        /**
         * Removes a folder with everything that was kept in it, also where it is too damaged to be opened. How much was sent to federations is
         * forgotten too.
         *
         * @throws StateException this process or another has it open, or no model was ever opened there; nothing is removed
         * @throws UnwritableException something cannot be removed
         */
        public suspend fun erase(folder: Path) {
            opening.withLock {
                withContext(Dispatchers.IO) {
                    if (!folder.exists()) return@withContext
                    val home = diskErrors(folder) { folder.toRealPath() }
                    if (home in opened) {
                        throw StateException("the personal model in $home is open", "call eraseEverything(), or close it first")
                    }
                    if (!home.resolve(FolderLock.NAME).exists() && !isEmpty(home)) {
                        throw StateException("$home is no folder of a personal model", "give the one that it was opened with")
                    }
                    alone(home).use { _ ->
                        mark(home, AtomicFiles())
                        val kept = setOf(ERASING, FolderLock.NAME)
                        val all = home.toFile().listFiles { file -> file.name !in kept }.orEmpty()
                        val removed = all.map { it.deleteRecursively() }.all { it } && home.toFile().deleteRecursively()
                        if (!removed) throw UnwritableException("$home cannot be removed", "restart the device, and try again")
                    }
                }
            }
        }

        /** What is killed while it erases is ended by the next opening; a full disk keeps nobody from erasing. */
        private fun mark(
            home: Path,
            files: AtomicFiles,
        ) {
            try {
                files.write(home.resolve(ERASING), ByteArray(0))
            } catch (_: StorageFullException) {
                return
            } catch (_: UnwritableException) {
                return
            }
        }

        private fun isEmpty(home: Path) = diskErrors(home) { Files.newDirectoryStream(home).use { it.none() } }

        /** Erasing removes all that lies there, so it must not be somebody else's. */
        private fun ofItsOwn(home: Path) {
            if (home.resolve(FolderLock.NAME).exists()) return
            val alien =
                diskErrors(home) { Files.newDirectoryStream(home).use { all -> all.map { it.fileName.toString() } } } - NAMES - SHIPPED
            if (alien.isNotEmpty()) {
                throw ConfigException("$home holds something else: ${alien.min()}", "give a folder of its own, which may be missing")
            }
        }

        private fun alone(home: Path) =
            diskErrors(home) { FolderLock.take(home, WAIT_MS) } ?: throw StateException(
                "the personal model in $home is open in another process",
                "open it in one process of the app only",
            )

        private fun openFirst(
            source: Path,
            home: Path,
            options: ModelOptions,
            clock: () -> Double,
            context: CoroutineContext,
            disk: Disk,
            examples: (Path) -> ExampleStore,
        ): PersonalModel {
            val begun = ArrayList<AutoCloseable>()
            var whole = false
            try {
                val lock = alone(home)
                begun += lock
                val cache = home.resolve(UNPACKED)
                privateFolder(cache) { true }
                diskErrors(cache) { Files.newDirectoryStream(cache).use { left -> left.forEach { it.toFile().deleteRecursively() } } }
                val bundle = Bundle.open(source, options.key, cacheFolder = cache)
                begun += bundle
                val kept = examples(home)
                begun += kept
                return PersonalModel(home, bundle, options, kept, lock, clock, context, disk).also { whole = true }
            } finally {
                if (!whole) begun.asReversed().forEach { it.close() }
            }
        }

        /** Whether the last user of a model left. */
        private suspend fun leave(model: PersonalModel): Boolean =
            opening.withLock {
                val there = opened[model.home]?.takeIf { it.model === model } ?: return false
                there.users--
                if (there.users > 0) return false
                opened.remove(model.home)
                true
            }

        private const val WAIT_MS = 200L
        private const val STATE_WAIT_MS = 2000L
        private const val VERSIONS = 5

        private fun noText(what: String) = ConfigException("the bundle takes arrays; $what makes no sense for it", "give arrays")

        private fun longs(
            outputs: Map<String, Tensor>,
            name: String,
        ) = (outputs[name] as? LongTensor)?.values ?: throw noOutput(name)

        private fun floats(
            outputs: Map<String, Tensor>,
            name: String,
        ) = (outputs[name] as? FloatTensor)?.values ?: throw noOutput(name)

        private fun noOutput(name: String) = TensorMismatchException("the program '$PREDICT' gives no '$name'", "export the bundle again")

        private fun reshaped(
            value: Tensor,
            shape: List<Int>,
        ): Tensor =
            when (value) {
                is FloatTensor -> FloatTensor(value.values.copyOf(), shape)
                is LongTensor -> LongTensor(value.values.copyOf(), shape)
                is RawTensor -> RawTensor(value.dtype, value.bytes.copyOf(), shape)
            }
    }
}
