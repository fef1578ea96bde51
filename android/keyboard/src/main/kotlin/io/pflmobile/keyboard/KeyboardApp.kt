package io.pflmobile.keyboard

import android.app.Application
import io.pflmobile.keyboard.model.SdkAssistant
import io.pflmobile.sdk.RoundsScheduler

/** What has to be known before a job of the system opens the model in a process without keys. */
public class KeyboardApp : Application() {
    override fun onCreate() {
        super.onCreate()
        // a schedule may be older than what the user chose
        RoundsScheduler.federationWith = { context, _ -> SdkAssistant.federation(context) }
    }
}
